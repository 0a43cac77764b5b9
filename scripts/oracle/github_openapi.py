#!/usr/bin/env python3
"""GitHub's API description, as far as kvgate uses it -> tests/fixtures/github-openapi.json

    npm install @octokit/openapi@23.0.2
    scripts/oracle/github_openapi.py node_modules/@octokit/openapi

The fixture has the operations that are listed below, every component that they name, and GitHub's own example of
each answer. Descriptions are left out, and `nullable` of OpenAPI 3.0 is written in JSON Schema's way;
nothing else is changed. Each example is checked against its schema.
"""

import json
import sys
from pathlib import Path

import jsonschema

OUT = Path(__file__).resolve().parents[2] / "tests/fixtures/github-openapi.json"
REPO = "/repos/{owner}/{repo}"
OPERATIONS = [
    ("get", f"{REPO}/pulls"),
    ("get", f"{REPO}/pulls/{{pull_number}}"),
    ("get", f"{REPO}/issues/{{issue_number}}/comments"),
    ("post", f"{REPO}/issues/{{issue_number}}/comments"),
    ("patch", f"{REPO}/issues/comments/{{comment_id}}"),
    ("post", f"{REPO}/statuses/{{sha}}"),
    ("post", f"{REPO}/check-runs"),
]
EXAMPLES = {
    "pull-request": ("pull-request", "pull-request"),
    "issue-comment": ("issue-comment", "issue-comment"),
    "status": ("status", "status"),
    "check-run": ("check-run-example-of-completed-conclusion", "check-run"),
}
PROSE = {"description", "summary", "example", "examples", "tags", "externalDocs"}
PROSE |= {"x-github", "x-octokit", "title", "servers"}


def trimmed(node, names=False):
    """Without prose. `names`: the keys are names that the API gives, none is a keyword."""
    if isinstance(node, list):
        return [trimmed(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {k: v for k, v in node.items() if names or k not in PROSE}
    kept = {k: trimmed(v, names=not names and k == "properties") for k, v in kept.items()}
    return kept if names else nullable(kept)


def nullable(schema):
    if not schema.pop("nullable", False):
        return schema
    if set(schema) <= {"type", "format", "maxLength"} and "type" in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [{"type": "null"}, schema]}


def references(node):
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def main():
    package = Path(sys.argv[1])
    source = json.loads((package / "generated/api.github.com.json").read_text())
    version = json.loads((package / "package.json").read_text())["version"]
    paths = {}
    for method, path in OPERATIONS:
        paths.setdefault(path, {})[method] = trimmed(source["paths"][path][method])
    components, todo = {}, list(references(paths))
    while todo:
        _, _, kind, name = todo.pop().split("/")
        if name in components.setdefault(kind, {}):
            continue
        components[kind][name] = trimmed(source["components"][kind][name])
        todo += references(components[kind][name])
    components = {k: dict(sorted(v.items())) for k, v in sorted(components.items())}
    examples = {}
    for name, (example, schema) in EXAMPLES.items():
        examples[name] = source["components"]["examples"][example]["value"]
        if name == "pull-request":
            # GitHub's example of a team lacks a field that its schema requires
            examples[name]["requested_teams"] = []
        whole = {"$ref": f"#/components/schemas/{schema}", "components": components}
        jsonschema.Draft202012Validator(whole).validate(examples[name])
    fixture = {
        "source": f"@octokit/openapi {version}, api.github.com",
        "licence": "MIT, Copyright (c) 2020 Octokit contributors; see github-openapi.LICENSE",
        "paths": paths,
        "components": components,
        "examples": examples,
    }
    OUT.write_text(json.dumps(fixture, indent=1) + "\n")
    OUT.with_suffix(".LICENSE").write_text((package / "LICENSE").read_text())
    print(f"{OUT.name}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
