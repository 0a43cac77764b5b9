use super::*;

const BASE: &str = r#"
[defaults]
corpus = "corpora/c.txt"
context = 512
chunks = 4
[defaults.limits]
mean_kld = 0.05
[defaults.schemes]
q8_0 = {}
[schemes]
prod = "q4_0:norot"
[models.m]
path = "m.gguf"
"#;

fn parse(text: &str) -> Result<(Policy, Vec<Diagnostic>), PolicyError> {
    Policy::parse(text, Path::new("gate/thresholds.toml"))
}

fn policy(text: &str) -> Policy {
    parse(text).map(|(policy, _)| policy).unwrap_or_else(|error| panic!("{error}"))
}

fn errors(text: &str) -> Vec<Diagnostic> {
    match parse(text) {
        Err(PolicyError::Invalid(findings)) => findings,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("accepted:\n{text}"),
    }
}

/// [`BASE`] with one place edited.
fn edited(old: &str, new: &str) -> String {
    assert_eq!(BASE.matches(old).count(), 1, "{old}");
    BASE.replace(old, new)
}

/// Takes «» out of a text; gives line, column and text of what they enclosed.
fn unmark(marked: &str) -> (String, (usize, usize), String) {
    let (before, rest) = marked.split_once('«').expect("a mark");
    let (inner, after) = rest.split_once('»').expect("an end of the mark");
    let line = before.split('\n').count();
    let column = 1 + before.rsplit('\n').next().unwrap().chars().count();
    (format!("{before}{inner}{after}"), (line, column), inner.into())
}

/// The one finding of a marked text is at the mark, and says all of `words`.
#[track_caller]
fn assert_finding(findings: &[Diagnostic], marked: &str, words: &[&str]) {
    let (text, position, underlined) = unmark(marked);
    let shown: Vec<String> = findings.iter().map(ToString::to_string).collect();
    let shown = shown.join("\n\n");
    assert_eq!(findings.len(), 1, "{text}\n{shown}");
    assert_eq!(findings[0].position(), position, "{shown}");
    assert_eq!(findings[0].underlined(), underlined, "{shown}");
    for word in words {
        assert!(shown.contains(word), "no {word:?} in:\n{shown}");
    }
}

/// (what of [`BASE`] is replaced, by what with the offending text marked, words of the finding)
type Fault = (&'static str, &'static str, &'static [&'static str]);

#[track_caller]
fn assert_faults(faults: &[Fault]) {
    for (old, new, words) in faults {
        let marked = edited(old, new);
        let (text, ..) = unmark(&marked);
        assert_finding(&errors(&text), &marked, words);
    }
}

#[test]
fn base_is_sound() {
    let (policy, warnings) = parse(BASE).unwrap();
    assert_eq!((policy.models.len(), warnings.len()), (1, 0));
}

#[test]
fn syntax_is_diagnosed_in_place() {
    assert_faults(&[
        ("context = 512", "context = «5 12»", &["must be quoted", "help: "]),
        ("context = 512", "context = 1\n«context» = 2", &["duplicate key"]),
        ("q8_0 = {}", "q8_0«/»q4_0 = {}", &["help: quote it: `\"q8_0/q4_0\"`"]),
        ("q8_0 = {}", "q4_0«:»norot = {}", &["help: quote it: `\"q4_0:norot\"`"]),
        ("[models.m]", "[models.m«/»x]", &["help: quote it: `\"m/x\"`"]),
        ("q8_0 = {}", "q8_0 = { at.a«/»b = {} }", &["help: quote it: `\"a/b\"`"]),
        ("q8_0 = {}", "q8«é»_0 = {}", &["invalid unquoted key"]),
    ]);
}

/// Tables in braces may span lines and end with a comma, as TOML 1.1 has it.
#[test]
fn tables_in_braces_may_span_lines() {
    let limits = "q8_0 = {\n  expect = \"fail\", # for a reason\n  reason = \"coarse\",\n}";
    let cell = &policy(&edited("q8_0 = {}", limits)).models[0].cells[0];
    assert_eq!((cell.expect, cell.reason.as_deref()), (Expectation::Fail, Some("coarse")));
}

#[test]
fn faults_of_tables_in_braces_have_their_mend() {
    for (new, words) in [
        ("q8_0 = { expect = \"fail\",«», reason = \"x\" }", "help: remove it: one comma"),
        (
            "q8_0 = {\n  expect = \"fail\"\n  «»reason = \"x\"\n}",
            "help: entries of a table in braces need a comma between them",
        ),
        ("q8_0 = «»\n{ expect = \"fail\" }", "help: the value must begin in the line of its key"),
        ("q8_0 = { expect«:» \"fail\" }", "help: write `=` between a key and its value"),
        ("q8_0 = { expect = \"fail\"\n«»[x]\n", "help: close the table in braces above it"),
    ] {
        let marked = edited("q8_0 = {}", new);
        let (text, ..) = unmark(&marked);
        let findings = errors(&text);
        assert_finding(&findings[..1], &marked, &[words]);
    }
}

#[test]
fn unknown_keys_name_the_nearest() {
    assert_faults(&[
        (
            "[schemes]\nprod",
            "[«scheme»]\nprod",
            &["unknown key `scheme`", "did you mean `schemes`?"],
        ),
        ("[defaults]\n", "[defaults]\n«contxt» = 1\n", &["`contxt`", "did you mean `context`?"]),
        ("[defaults]\n", "[defaults]\n«ignored» = true\n", &["keys here: corpus, context"]),
        ("[defaults]\n", "[defaults]\n«path» = \"x\"\n", &["unknown key `path`"]),
        ("q8_0 = {}", "q8_0 = { «limit» = {} }", &["did you mean `limits`?"]),
        ("[models.m]\n", "[models.m]\n«sha265» = \"\"\n", &["did you mean `sha256`?"]),
        ("[models.m]\n", "[models.m]\n«revison» = \"\"\n", &["did you mean `revision`?"]),
        ("[models.m]\n", "[models.m]\nat.long.«chunk» = 1\n", &["did you mean `chunks`?"]),
        ("[models.m]\n", "[models.m]\nat.long.«path» = \"\"\n", &["unknown key `path`"]),
        (
            "mean_kld",
            "mean_kld = 0.05\n«mean_kl»",
            &["unknown statistic", "did you mean `mean_kld`?"],
        ),
        ("mean_kld", "mean_kld = 0.05\n«bits»", &["statistics: mean_kld, median_kld"]),
    ]);
}

#[test]
fn types_are_checked() {
    assert_faults(&[
        (
            "context = 512",
            "context = «\"512\"»",
            &["takes a whole number, not a string", "`context = 512`"],
        ),
        ("context = 512", "context = «512.0»", &["takes a whole number, not a number"]),
        ("chunks = 4", "chunks = «true»", &["not `true`", "`chunks = 16`"]),
        ("\"corpora/c.txt\"", "«7»", &["takes a string, not a whole number", "corpus = ["]),
        ("\"corpora/c.txt\"", "[\"a.txt\", «7»]", &["takes a string"]),
        ("\"m.gguf\"", "«1979-05-27»", &["not a date"]),
        ("[models.m]\n", "[models.m]\nignored = «\"yes\"»\n", &["takes `true` or `false`"]),
        ("[models.m]\n", "[models.m]\nbos = «1»\n", &["takes `true` or `false`", "`bos = true`"]),
        ("[models.m]\n", "[models.m]\nuntrained = «0»\n", &["takes `true` or `false`"]),
        ("[models.m]\n", "[models.m]\nignore_keys = «\"a\"»\n", &["takes a list of strings"]),
        ("[models.m]\n", "[models.m]\nignore_keys = [«1»]\n", &["takes a string"]),
        ("[models.m]\n", "[models.m]\nignore_keys = [\"a\", «\"a\"»]\n", &["stands twice"]),
        ("[models.m]\n", "[models.m]\nignore_keys = [«\"a b\"»]\n", &["white space"]),
        ("[models.m]\n", "[models.m]\nat = «[]»\n", &["takes a table, not a list"]),
        ("[models.m]\n", "[models]\nx = «3»\n[models.m]\n", &["`x` takes a table"]),
        ("q8_0 = {}", "q8_0 = «true»", &["a table or `false`, not `true`", "`false` drops it"]),
        ("q8_0 = {}", "q8_0 = { expect = «true» }", &["takes a string", "`expect = \"fail\"`"]),
        ("q8_0 = {}", "q8_0 = { expect = «\"fial\"» }", &["`fial`", "did you mean `fail`?"]),
        ("\"q4_0:norot\"", "«4»", &["`prod` takes a string"]),
    ]);
}

#[test]
fn bounds_must_be_able_to_bind_and_to_hold() {
    assert_faults(&[
        ("= 0.05", "= «\"0.05\"»", &["takes a number", "without quotes: `mean_kld = 0.05`"]),
        ("= 0.05", "= «\"low\"»", &["not a string", "for example `mean_kld = 0.05`"]),
        ("= 0.05", "= «true»", &["takes a number or `false`", "removes an inherited limit"]),
        ("= 0.05", "= «nan»", &["is no bound"]),
        ("= 0.05", "= «inf»", &["is no bound"]),
        ("= 0.05", "= «-inf»", &["is no bound"]),
        ("= 0.05", "= «-0.05»", &["impossible: it is at least 0", "for example `mean_kld = 0.05`"]),
        ("mean_kld = 0.05", "top1_agreement = «0.0»", &["can never bind: it is always at least 0"]),
        ("mean_kld = 0.05", "rms_dp = «1.0»", &["can never bind: it is always at most 1"]),
        ("mean_kld = 0.05", "rms_dp = «1»", &["can never bind"]),
        ("mean_kld = 0.05", "top1_agreement = «1.5»", &["impossible: it is from 0 to 1"]),
        (
            "mean_kld = 0.05",
            "top1_agreement = «85»",
            &["not a percentage: `top1_agreement = 0.85`"],
        ),
        ("= 0.05", "= 0.05\nbaseline_ppl = «0.5»", &["impossible: it is at least 1"]),
        ("= 0.05", "= 0.05\nppl_ratio = «0»", &["broken by every value: no perplexity is 0"]),
    ]);
    let more = "mean_kld = 0.05\nbaseline_ppl = 1_000";
    for sound in ["top1_agreement = 1.0", "rms_dp = 0", "mean_kld = 0.0", more] {
        policy(&edited("mean_kld = 0.05", sound));
    }
    assert_eq!(policy(&edited("0.05", "1_0")).models[0].cells[0].limits[0].bound, 10.0);
}

#[test]
fn single_values_are_checked() {
    assert_faults(&[
        ("chunks = 4", "chunks = «0»", &["`chunks` must be at least 1", "`chunks = 16`"]),
        ("chunks = 4", "chunks = «-1»", &["must be at least 1"]),
        ("chunks = 4", "chunks = «99999999999999999999»", &["`chunks` must be at most 1844674407"]),
        ("context = 512", "context = «15»", &["`context` must be at least 16"]),
        ("\"m.gguf\"", "«\"\"»", &["`path` is empty"]),
        ("\"corpora/c.txt\"", "«[]»", &["an empty corpus"]),
        ("\"corpora/c.txt\"", "[\"a/c.txt\", «\"b/c.md\"»]", &["the stem `c`", "rename"]),
        (
            "[models.m]\n",
            "[models.m]\nsha256 = «\"abc\"»\n",
            &["3 characters, not 64", "sha256sum"],
        ),
        ("[models.m]\n", "[models.m]\nbaseline = «\"f61\"»\n", &["did you mean `f16`?"]),
        ("q8_0 = {}", "«q8_O» = {}", &["did you mean `q8_0`?"]),
        ("q8_0 = {}", "«\"q8_0 \"» = {}", &["has a blank", "write `q8_0`"]),
        ("q8_0 = {}", "«prdo» = {}", &["unknown codec", "did you mean `prod` of [schemes]?"]),
        ("q8_0 = {}", "«\"f16:norot\"» = {}", &["write `f16`"]),
        ("\"q4_0:norot\"", "«\"q4_0:nope\"»", &["unknown option `:nope`"]),
        ("prod =", "«q5_1» =", &["`q5_1` is a codec", "another name"]),
        ("prod =", "«Q5_1» =", &["`Q5_1` is a codec"]),
        ("prod =", "«\"a/b\"» =", &["cannot name a scheme"]),
    ]);
    let nearly = format!("[models.m]\nsha256 = «\"{}g\"»\n", "a".repeat(63));
    let marked = edited("[models.m]\n", &nearly);
    assert_finding(&errors(&unmark(&marked).0), &marked, &["not 64 hexadecimal digits"]);
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// [`BASE`] with the model on the hub; marks may be in the lines.
fn on_the_hub(lines: &str) -> String {
    edited("path = \"m.gguf\"", lines).replace("COMMIT", COMMIT)
}

#[test]
fn a_model_may_be_on_the_hub() {
    let lines = "hf = \"org/m-2.5\"\nrevision = \"COMMIT\"";
    let whole = policy(&on_the_hub(lines)).models.remove(0).source;
    assert_eq!(whole.to_string(), format!("hf:org/m-2.5@{COMMIT}"));
    let snapshot = Path::new("models--org--m-2.5/snapshots").join(COMMIT);
    assert!(whole.path.ends_with(&snapshot), "{}", whole.path.display());
    let lines = lines.replace("COMMIT", &COMMIT.to_uppercase());
    let file = policy(&on_the_hub(&format!("{lines}\nfile = \"gguf/m.gguf\"")));
    let file = &file.models[0].source;
    assert_eq!(file.to_string(), format!("hf:org/m-2.5@{COMMIT}/gguf/m.gguf"));
    assert!(file.path.ends_with(snapshot.join("gguf/m.gguf")), "{}", file.path.display());
}

#[test]
fn a_model_on_the_hub_is_pinned_and_is_in_one_place() {
    let faults: [(&str, &[&str]); 11] = [
        ("hf = «\"org/m\"»", &["`hf` without a `revision`", "pin a commit: `revision = "]),
        (
            "hf = \"org/m\"\nrevision = «\"main\"»",
            &["`main` is no commit", "what moves cannot gate", "40 hexadecimal digits"],
        ),
        ("hf = \"org/m\"\nrevision = «\"0123abc\"»", &["7 digits, not 40"]),
        ("hf = \"org/m\"\nrevision = «\"\"»", &["`revision` is empty", "`revision = "]),
        ("hf = \"org/m\"\nrevision = «7»", &["`revision` takes a string"]),
        ("hf = «\"m\"»\nrevision = \"COMMIT\"", &["no repository of the hub", "`org/name`"]),
        (
            "hf = «\"https://hub.example/org/m\"»\nrevision = \"COMMIT\"",
            &["no repository of the hub", "write `org/m`"],
        ),
        (
            "hf = \"org/m\"\nrevision = \"COMMIT\"\nfile = «\"../m.gguf\"»",
            &["no GGUF file of a repository", "needs no `file`"],
        ),
        (
            "path = \"m\"\nhf = «\"org/m\"»\nrevision = \"COMMIT\"",
            &["`path` and `hf` both say", "the other one", "keep one of them"],
        ),
        ("path = \"m\"\nrevision = «\"COMMIT\"»", &["`revision` belongs to", "there is no `hf`"]),
        ("file = «\"m.gguf\"»", &["`file` belongs to", "name the repository: `hf = "]),
    ];
    for (lines, words) in faults {
        let marked = on_the_hub(lines);
        assert_finding(&errors(&unmark(&marked).0), &marked, words);
    }
    let fetch = "hf = \"org/m\"\nrevision = \"COMMIT\"\nfetch = «\"get m\"»";
    let marked = on_the_hub(fetch);
    assert_finding(&errors(&unmark(&marked).0), &marked, &["`fetch` beside `hf`", "remove"]);
}

#[test]
fn expecting_failure_needs_a_reason() {
    assert_faults(&[
        ("q8_0 = {}", "q8_0 = { expect = «\"fail\"» }", &["without a reason", "`reason = "]),
        ("q8_0 = {}", "q8_0 = { reason = \" \", expect = «\"fail\"» }", &["without a reason"]),
        (
            "[models.m]\n",
            "[models.m]\nschemes.q8_0 = { expect = «\"fail\"» }\n",
            &["without a reason"],
        ),
    ]);
    // the reason of another expectation is no reason
    let inherited = edited("q8_0 = {}", "q8_0 = { reason = \"just so\" }");
    errors(&(inherited.clone() + "schemes.q8_0.expect = \"fail\"\n"));
    let reset = edited("q8_0 = {}", "q8_0 = { expect = \"fail\", reason = \"outliers\" }");
    let cell = &policy(&(reset + "schemes.q8_0.expect = \"pass\"\n")).models[0].cells[0];
    assert_eq!((cell.expect, &cell.reason), (Expectation::Pass, &None));
    let kept = policy(&(inherited + "schemes.q8_0.ignored = true\n"));
    assert_eq!(kept.models[0].cells[0].reason.as_deref(), Some("just so"));
}

#[test]
fn a_policy_gates_something() {
    assert_faults(&[
        ("[models.m]\npath = \"m.gguf\"", "[«models»]", &["no model", "`[models.NAME]`"]),
        (
            "q8_0 = {}\n[schemes]\nprod = \"q4_0:norot\"\n[models.m]",
            "[models.«m»]",
            &["`m` has no scheme"],
        ),
        ("[models.m]\n", "[models.«m»]\nschemes.q8_0 = false\n", &["`m` has no scheme"]),
        (
            "mean_kld = 0.05\n[defaults.schemes]\nq8_0",
            "[defaults.schemes]\n«q8_0»",
            &["no limit applies to `m::q8_0`"],
        ),
        (
            "q8_0 = {}",
            "«q8_0» = { expect = \"fail\", reason = \"r\", limits.mean_kld = false }",
            &["no limit applies", "`expect = \"report\"`"],
        ),
    ]);
    policy(&edited("q8_0 = {}", "q8_0 = { expect = \"report\", limits.mean_kld = false }"));
    for empty in ["", "# nothing\n", "[defaults]\n"] {
        let findings = errors(empty);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].to_string().contains("add one: `[models.NAME]`"), "{}", findings[0]);
    }
}

#[test]
fn settings_without_a_default_are_required() {
    assert_faults(&[(
        "[models.m]\npath = \"m.gguf\"\n",
        "[models.«m»]\n",
        &["`m` has no path", "add `path = \"models/model.gguf\"`, or `hf = \"org/name\"`"],
    )]);
    let models = "[models.«m»]\nat.x = {}";
    for (key, line) in [
        ("corpus", "corpus = \"corpora/c.txt\""),
        ("context", "context = 512"),
        ("chunks", "chunks = 4"),
    ] {
        let marked = edited(line, "").replace("[models.m]", models);
        let findings = errors(&unmark(&marked).0);
        assert_finding(
            &findings,
            &marked,
            &[&format!("`m` has no {key}"), "here or in [defaults]"],
        );
    }
}

#[test]
fn dotted_names_are_quoted() {
    assert_faults(&[
        (
            "[models.m]\n",
            "[models.«Qwen3.6-35B-A3B»]\n",
            &["`models.\"Qwen3.6-35B-A3B\"`", "tables within `Qwen3`"],
        ),
        ("[models.m]\n", "[models.«Qwen2.5-0.5B»]\n", &["`models.\"Qwen2.5-0.5B\"`"]),
        (
            "[models.m]\npath = \"m.gguf\"\n",
            "[models.«Qwen3.6-35B».schemes]\nq8_0 = {}\n",
            &["`models.\"Qwen3.6-35B\"`"],
        ),
        ("[models.m]\npath = \"m.gguf\"\n", "[models.«Qwen3.6»]\n", &["`models.\"Qwen3.6\"`"]),
        ("[models.m]\n", "[models.«phi.small»]\n", &["`models.\"phi.small\"`"]),
        ("[models.m]\n", "[models.m]\npath = \"n\"\n[models.m.«5-1B»]\n", &["`models.\"m.5-1B\"`"]),
        ("[models.m]\n", "[models.m]\nat.«v1.5».chunks = 8\n", &["`at.\"v1.5\"`"]),
    ]);
    policy(&edited("[models.m]", "[models.\"Qwen3.6-35B\"]"));
    let typo = edited("[models.m]\n", "[models.m]\n«schemas».q8_0 = {}\n");
    assert_finding(&errors(&unmark(&typo).0), &typo, &["did you mean `schemes`?"]);
}

#[test]
fn names_are_fit_for_files() {
    assert_faults(&[
        ("[models.m]", "[models.«\"a/b\"»]", &["cannot name a model", "A-Z a-z 0-9"]),
        ("[models.m]", "[models.«\"a@b\"»]", &["cannot name a model"]),
        ("[models.m]", "[models.«\"\"»]", &["cannot name a model"]),
        ("[models.m]\n", "[models.m]\nat.«\"4 k\"» = {}\n", &["cannot name an `at` section"]),
    ]);
    policy(&edited("[models.m]", "[models.\"A-z.0_9\"]"));
}

#[test]
fn two_cases_never_share_a_golden() {
    let second = "[models.m]\npath = \"x\"\n[models.«M»]\n";
    assert_faults(&[
        ("[models.m]\n", second, &["another case has the golden `M__q8_0.snap`", "rename", "the other one"]),
        (
            "[models.m]\n",
            "[models.m]\nat.long = {}\nat.«Long» = {}\n",
            &["`m@Long__q8_0.snap`"],
        ),
        (
            "prod = \"q4_0:norot\"\n[models.m]\n",
            "prod = \"q4_0:norot\"\nProd = \"q4_1\"\n[models.m]\nschemes.prod = {}\nschemes.«Prod» = {}\n",
            &["`m__Prod.snap`"],
        ),
        (
            "[models.m]\n",
            "[models.m]\nschemes.«\"q8_0/q8_0\"» = {}\nat.long = {}\n",
            &["`q8_0` and `q8_0/q8_0` are the same scheme", "keep one of the names: `q8_0`"],
        ),
        (
            "[models.m]\n",
            "[models.m]\nschemes.prod = {}\nschemes.«\"q4_0:norot\"» = {}\n",
            &["`prod` and `q4_0:norot` are the same scheme"],
        ),
    ]);
}

#[test]
fn what_is_no_scheme_is_not_compared() {
    assert_eq!(errors(&edited("q8_0 = {}", "int3 = {}\nint2 = {}")).len(), 2);
}

#[test]
fn a_cell_is_faulted_where_it_was_last_spoken_of() {
    let marked = BASE.to_owned() + "schemes.«q8_0».limits.mean_kld = false\n";
    assert_finding(&errors(&unmark(&marked).0), &marked, &["no limit applies to `m::q8_0`"]);
}

#[test]
fn dropping_needs_something_to_drop() {
    assert_faults(&[
        (
            "[models.m]\n",
            "[models.m]\nschemes.«q5_1» = false\n",
            &["`q5_1` is not inherited", "remove the line"],
        ),
        ("q8_0 = {}", "q8_0 = {}\n«q5_1» = false", &["not inherited"]),
        ("[models.m]\n", "[models.m]\nschemes.«\"q8_0/q8_0\"» = false\n", &["not inherited"]),
        ("[models.m]\n", "[models.m]\nschemes.«prod» = false\n", &["not inherited"]),
    ]);
}

#[test]
fn all_findings_come_at_once_in_order() {
    let text = edited("context = 512", "contxt = 512\nchunks = 0").replace("chunks = 4\n", "")
        + "sha256 = \"1\"\nschemes.int3 = {}\n";
    let shown: Vec<_> = errors(&text).iter().map(|d| d.underlined().to_owned()).collect();
    assert_eq!(shown, ["contxt", "0", "m", "\"1\"", "int3"]);
    let message = parse(&text).unwrap_err().to_string();
    assert_eq!(message.matches("error: ").count(), 5, "{message}");
}

#[test]
fn a_finding_reads_like_rustc() {
    let finding = &errors(&edited("context = 512", "  \"cöntext\" = 512"))[0];
    let expected = "\
error: unknown key `cöntext`
 --> gate/thresholds.toml:4:3
  |
4 |   \"cöntext\" = 512
  |   ^^^^^^^^^
  |
  = help: did you mean `context`?";
    assert_eq!(finding.to_string(), expected);
    assert!(finding.styled().contains("\u{1b}["));
}

/// A policy of a pull request is a stranger's text, and a finding shows lines of it.
#[test]
fn a_finding_shows_nothing_that_a_terminal_obeys() {
    for c in crate::text::HOSTILE.into_iter().filter(|c| !c.is_control() || *c > '\u{7f}') {
        let finding = &errors(&edited("context = 512", &format!("\"a{c}b\" = 512")))[0];
        let (plain, styled) = (finding.to_string(), finding.styled());
        assert!(!plain.contains(c) && !styled.contains(c), "{c:?}: {plain}");
        assert!(plain.contains("unknown key `a\\u{"), "{plain}");
    }
}

#[test]
fn a_confidence_is_a_share_and_needs_chunks() {
    assert_faults(&[
        ("context = 512", "context = 512\nconfidence = «95»", &["a number such as 0.95"]),
        ("context = 512", "context = 512\nconfidence = «1.0»", &["within 0.8 and 0.999"]),
        ("context = 512", "context = 512\nconfidence = «nan»", &["within 0.8 and 0.999"]),
        ("context = 512", "context = 512\nconfidence = «\"0.95\"»", &["a number such as 0.95"]),
    ]);
    let of = |chunks: usize, confidence: &str| {
        let text = edited("chunks = 4", &format!("chunks = {chunks}\nconfidence = {confidence}"));
        let (policy, warnings) = parse(&text).unwrap();
        let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
        (policy.models[0].confidence, warnings.join("\n"))
    };
    assert_eq!(of(8, "0.9"), (Some(0.9), String::new()));
    assert_eq!(of(8, "false"), (None, String::new()));
    assert_eq!(of(7, "false"), (None, String::new()));
    // a limit that a value cannot break before another one may still be the one that its interval leaves open
    let idle = edited("mean_kld = 0.05\n", "mean_kld = 0.05\ntop1_agreement = 0.5\n");
    let warnings = |text: &str| parse(text).unwrap().1.len();
    let sure = idle.replace("chunks = 4", "chunks = 8\nconfidence = 0.95");
    assert_eq!([warnings(&idle) > 0, warnings(&sure) > 0], [true, false]);
    let (confidence, warning) = of(7, "0.95");
    assert_eq!(confidence, Some(0.95));
    assert!(warning.contains("has no effect with 7 chunks"), "{warning}");
}

/// Three texts that take turns: 22 chunks are 8, 7 and 7.
const BY_CATEGORY: &str = r#"
[defaults]
corpus = ["corpora/prose.txt", "corpora/tools.txt", "corpora/code.txt"]
context = 512
chunks = 24
[defaults.limits]
mean_kld = 0.05
[defaults.limits.category.tools]
mean_kld = 0.04
[defaults.schemes]
q8_0 = {}
[models.m]
path = "m.gguf"
"#;

#[test]
fn limits_by_category_are_inherited_like_the_others() {
    let of = |more: &str| {
        let policy = policy(&format!("{BY_CATEGORY}{more}"));
        let all = bounds(&policy.models[0], "q8_0").into_iter();
        all.map(|(name, bound, _)| (name, bound)).collect::<Vec<_>>()
    };
    let named = |all: &[(&str, f64)]| -> Vec<(String, f64)> {
        all.iter().map(|(name, bound)| (name.to_string(), *bound)).collect()
    };
    assert_eq!(of(""), named(&[("mean_kld", 0.05), ("mean_kld of tools", 0.04)]));
    let more = "limits.category.tools = { mean_kld = 0.03, top1_agreement = 0.9 }\n\
                [models.m.schemes.q8_0.limits.category.prose]\nmean_kld = 0.02\n";
    let expected = [
        ("mean_kld", 0.05),
        ("mean_kld of prose", 0.02),
        ("mean_kld of tools", 0.03),
        ("top1_agreement of tools", 0.9),
    ];
    assert_eq!(of(more), named(&expected));
    let dropped = "limits.category.tools.mean_kld = false\n";
    assert_eq!(of(dropped), named(&[("mean_kld", 0.05)]));
}

#[test]
fn a_limit_by_category_has_a_text_enough_chunks_and_a_sum() {
    let faults = |old: &str, new: &str, words: &[&str]| {
        assert_eq!(BY_CATEGORY.matches(old).count(), 1, "{old}");
        let marked = BY_CATEGORY.replace(old, new);
        assert_finding(&errors(&unmark(&marked).0), &marked, words);
    };
    let limit = "category.tools]\nmean_kld = 0.04";
    for (new, words) in [
        ("category.tool]\n«mean_kld = 0.04»", "did you mean `tools`?"),
        ("category.maths]\n«mean_kld = 0.04»", "here prose, tools, code; where a model has no"),
        ("category.tools]\n«p99_kld» = 0.04", "no quantile follows; limits by category: mean_kld,"),
        ("category.tools]\n«mean_kl» = 0.04", "did you mean `mean_kld`?"),
        (
            "category.tools]\nmean_kld = «0»",
            "`mean_kld = 0` is broken by every value: a scheme that",
        ),
        ("category.tools]\nmean_kld = «-0.0»", "`mean_kld = -0` is broken by every value"),
        ("category.tools]\nrms_dp = «0.0»", "`rms_dp = 0` is broken by every value"),
        ("category]\ntools = «0.04»", "`tools` takes a table"),
        ("category]\ntools = «false»", "drop each by its name: `category.tools.mean_kld = false`"),
    ] {
        faults(limit, new, &[words]);
    }
    // what has no limit of its own that could be broken is no judgement
    faults(
        "mean_kld = 0.05\n[defaults.limits.category.tools]\nmean_kld = 0.04\n[defaults.schemes]\nq8_0",
        "category.tools.baseline_ppl = 40.0\n[defaults.schemes]\n«q8_0»",
        &["nothing would be judged"],
    );
    // by how the texts take turns: 23 chunks are 8, 8 and 7
    assert!(parse(&BY_CATEGORY.replace("chunks = 24", "chunks = 23")).is_ok());
    let few = BY_CATEGORY.replace("chunks = 24", "chunks = 22");
    let marked = few.replace("mean_kld = 0.04", "«mean_kld = 0.04»");
    let words = ["7 chunks of `tools` are too few", "`chunks = 23` at least: 3 texts take turns"];
    assert_finding(&errors(&few), &marked, &words);
}

/// One mistake gives one finding, whatever else depends on the number of chunks.
#[test]
fn a_wrong_number_of_chunks_has_no_follow_up() {
    let sure = "chunks = 24\nconfidence = 0.95\nmax_chunks = 96";
    let in_model = "[models.m]\npath = \"m.gguf\"\nmax_chunks = 30\nat.x = { max_chunks = 40 }";
    let text = BY_CATEGORY.replace("chunks = 24", sure);
    let text = text.replace("[models.m]\npath = \"m.gguf\"", in_model);
    assert!(parse(&text).is_ok());
    for (wrong, words) in [
        ("«24.0»", "`chunks` takes a whole number, not a number"),
        ("«0»", "`chunks` must be at least 1"),
        ("«99999999999999999999»", "`chunks` must be at most 18446744073709551615"),
    ] {
        let marked = text.replace("chunks = 24", &format!("chunks = {wrong}"));
        assert_finding(&errors(&unmark(&marked).0), &marked, &[words]);
    }
    for (wrong, words) in [
        ("«0»", "`max_chunks` must be at least 1"),
        ("«99999999999999999999»", "`max_chunks` must be at most 18446744073709551615"),
    ] {
        let marked = text.replace("max_chunks = 40", &format!("max_chunks = {wrong}"));
        assert_finding(&errors(&unmark(&marked).0), &marked, &[words]);
    }
}

#[test]
fn more_chunks_are_measured_where_a_verdict_can_be_open() {
    let sure = "chunks = 12\nconfidence = 0.95";
    let with = |maximum: &str| edited("chunks = 4", &format!("{sure}\n{maximum}"));
    let looks = |maximum: &str| parse(&with(maximum)).unwrap().0.models[0].looks();
    assert_eq!(looks(""), [12]);
    assert_eq!(looks("max_chunks = false"), [12]);
    assert_eq!(looks("max_chunks = 13"), [12, 13]);
    assert_eq!(looks("max_chunks = 96"), [12, 24, 48, 96]);
    assert_eq!(looks("max_chunks = 100"), [12, 24, 48, 96, 100]);
    let faults = |edit: &str| -> String {
        let faults = parse(&edited("chunks = 4", edit)).unwrap_err();
        faults.to_string()
    };
    for (edit, why) in [
        ("chunks = 12\nmax_chunks = 24", "has no effect without a `confidence`"),
        ("chunks = 7\nconfidence = 0.95\nmax_chunks = 24", "has no effect with 7 chunks"),
        ("chunks = 12\nconfidence = 0.95\nmax_chunks = 12", "must be more than its 12 chunks"),
        ("chunks = 12\nconfidence = 0.95\nmax_chunks = true", "a whole number"),
    ] {
        let said = faults(edit);
        assert!(said.contains(why), "{edit}: {said}");
    }
}

#[test]
fn limits_far_from_the_law_of_flips_are_warned_about() {
    let with = |marked: &str| {
        let text = edited("mean_kld = 0.05\n", marked);
        let (plain, ..) = unmark(&text);
        (parse(&plain).unwrap().1, text)
    };
    // 1 - 0.8 sqrt(0.01) = 0.92 is the loosest that can bind
    let (warnings, text) = with("mean_kld = 0.01\n«top1_agreement = 0.91»\n");
    assert_finding(
        &warnings,
        &text,
        &["warning: ", "never binds", "broken first", "about 0.94 (0.92 to 0.98)"],
    );
    let (warnings, text) = with("«mean_kld = 0.01»\ntop1_agreement = 0.985\n");
    assert_finding(&warnings, &text, &["`mean_kld = 0.01` never binds"]);
    for agreement in ["0.93", "0.97"] {
        let (warnings, _) = with(&format!("mean_kld = 0.01\ntop1_agreement = {agreement}\n«»"));
        assert!(warnings.is_empty(), "{agreement}");
    }
    // an inherited limit that is idle for one scheme may bind for the others
    let own = edited("q8_0 = {}", "q8_0 = { limits = { mean_kld = 0.01, top1_agreement = 0.9 } }");
    let (_, warnings) = parse(&own).unwrap();
    let said = warnings[0].to_string();
    assert!(said.contains("`top1_agreement = 0.9` never binds for `q8_0`"), "{said}");
    assert!(said.contains("or drop it for this scheme: `top1_agreement = false`"), "{said}");
    // what is only reported has no limits that could bind
    let reported = edited("mean_kld = 0.05", "mean_kld = 0.01\ntop1_agreement = 0.5")
        .replace("q8_0 = {}", "q8_0 = { expect = \"report\" }");
    assert!(parse(&reported).unwrap().1.is_empty());
}

fn bounds(model: &ModelPolicy, label: &str) -> Vec<(String, f64, String)> {
    let cell = model.cells.iter().find(|cell| cell.label == label).expect(label);
    cell.limits.iter().map(|l| (l.quantity.name(), l.bound, l.origin.clone())).collect()
}

#[test]
fn later_limits_win() {
    let text = r#"[defaults]
corpus = "c"
context = 512
chunks = 4
limits = { mean_kld = 0.1, p90_kld = 0.1, p95_kld = 0.1, p99_kld = 0.1, p999_kld = 0.1, max_kld = 0.1 }
schemes.q8_0.limits = { p90_kld = 0.2, p95_kld = 0.2, p99_kld = 0.2, p999_kld = 0.2, max_kld = 0.2 }
[models.m]
path = "m"
limits = { p95_kld = 0.3, p99_kld = 0.3, p999_kld = 0.3, max_kld = 0.3 }
at.long.limits = { p99_kld = 0.4, p999_kld = 0.4, max_kld = 0.4 }
schemes.q8_0.limits = { p999_kld = 0.5, max_kld = 0.5 }
at.long.schemes.q8_0.limits = { max_kld = 0.6 }
schemes.q4_0.limits.p90_kld = false
"#;
    let policy = policy(text);
    let values =
        |model: &ModelPolicy, label| bounds(model, label).iter().map(|b| b.1).collect::<Vec<_>>();
    assert_eq!(values(&policy.models[0], "q8_0"), [0.1, 0.2, 0.3, 0.3, 0.5, 0.5]);
    assert_eq!(values(&policy.models[1], "q8_0"), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]);
    let origins: Vec<_> = bounds(&policy.models[1], "q8_0").into_iter().map(|b| b.2).collect();
    let lines = [5, 6, 9, 10, 11, 12].map(|line| format!("gate/thresholds.toml:{line}"));
    assert_eq!(origins, lines);
    let names: Vec<_> = bounds(&policy.models[0], "q4_0").into_iter().map(|b| b.0).collect();
    assert_eq!(names, ["mean_kld", "p95_kld", "p99_kld", "p999_kld", "max_kld"]);
}

#[test]
fn sections_inherit() {
    let text = edited("chunks = 4", "chunks = 4\nbaseline = \"f32\"")
        + r#"tokenizer = "t/tokenizer.json"
sha256 = "A5FD3B62A5FD3B62A5FD3B62A5FD3B62A5FD3B62A5FD3B62A5FD3B62A5FD3B62"
fetch = "get m"
baseline = "f16"
[models.m.schemes]
prod = { expect = "fail", reason = "norot" }
"q8_0/q4_0" = {}
[models.m.at.long]
context = 4096
corpus = ["a.txt", "/b.txt"]
[models.m.at.long.schemes]
q8_0 = false
iq4_nl = {}
prod = { expect = "report" }
[models."n.1"]
path = "/n.gguf"
ignored = true
schemes.q4_0 = { ignored = false }
at.x.chunks = 9
at.x.ignored = false
"#;
    let policy = policy(&text);
    let [m, long, n, x] = policy.models.as_slice() else { panic!("{policy:?}") };
    let labels = |m: &ModelPolicy| m.cells.iter().map(|c| c.label.clone()).collect::<Vec<_>>();
    let names: Vec<_> = policy.models.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["m", "m@long", "n.1", "n.1@x"]);
    assert_eq!(labels(m), ["q8_0", "prod", "q8_0/q4_0"]);
    assert_eq!(labels(long), ["prod", "q8_0/q4_0", "iq4_nl"]);
    assert_eq!((m.context, m.chunks, long.context, long.chunks, x.chunks), (512, 4, 4096, 4, 9));
    assert_eq!(m.corpus, [PathBuf::from("gate/corpora/c.txt")]);
    assert_eq!(long.corpus, [PathBuf::from("gate/a.txt"), PathBuf::from("/b.txt")]);
    assert_eq!((m.baseline.to_string(), n.baseline.to_string()), ("f16".into(), "f32".into()));
    assert_eq!(m.source, long.source);
    assert_eq!(m.source.path, Path::new("gate/m.gguf"));
    assert_eq!(n.source.path, Path::new("/n.gguf"));
    assert_eq!(m.source.tokenizer.as_deref(), Some(Path::new("gate/t/tokenizer.json")));
    assert_eq!(m.source.sha256, Some("a5fd3b62".repeat(8)));
    assert_eq!(m.source.fetch.as_deref(), Some("get m"));
    assert_eq!(m.cells[1].scheme, "q4_0:norot".parse().unwrap());
    assert_eq!(
        (m.cells[1].expect, m.cells[1].reason.as_deref()),
        (Expectation::Fail, Some("norot"))
    );
    assert_eq!(long.cells[0].expect, Expectation::Report);
    assert_eq!(n.cells.iter().map(|c| c.ignored).collect::<Vec<_>>(), [true, false]);
    assert!(x.cells.iter().all(|c| !c.ignored));
}

#[test]
fn a_limit_on_the_baseline_judges_no_scheme_and_a_quantized_baseline_nothing() {
    let errors = |text: &str| match Policy::parse(text, Path::new("thresholds.toml")) {
        Err(PolicyError::Invalid(findings)) => format!("{findings:?}"),
        other => panic!("{:?}", other.is_ok()),
    };
    let only = errors(&edited("mean_kld = 0.05", "baseline_ppl = 40.0"));
    assert!(only.contains("no limit applies"), "{only}");
    let lossy = errors(&edited("chunks = 4", "chunks = 4\nbaseline = \"q8_0\""));
    assert!(lossy.contains("the baseline `q8_0` is quantized itself"), "{lossy}");
}

#[test]
fn baseline_defaults_to_f16_and_may_be_a_scheme_too() {
    let model = &policy(&(BASE.to_owned() + "schemes.f16 = {}\n")).models[0];
    assert_eq!(model.baseline.to_string(), "f16");
    assert_eq!(model.cells[1].scheme, model.baseline);
    let named = policy(&edited("chunks = 4", "chunks = 4\nbaseline = \"bf16\""));
    assert_eq!(named.models[0].baseline.to_string(), "bf16");
}

#[test]
fn defaults_may_ignore_a_scheme_and_a_model_may_not() {
    let text = edited("q8_0 = {}", "q8_0 = { ignored = true }");
    assert!(policy(&text).models[0].cells[0].ignored);
    assert!(!policy(&(text + "ignored = false\n")).models[0].cells[0].ignored);
}

#[test]
fn cases_are_named_after_model_and_scheme() {
    let model = &policy(BASE).models[0];
    let cases = CaseKind::ALL.map(|kind| model.case(&model.cells[0], kind).to_string());
    assert_eq!(cases, ["m::q8_0::kld", "m::q8_0::golden"]);
}

#[test]
fn missing_files_are_named_with_their_mend() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("thresholds.toml");
    let text = edited("[models.m]\n", "[models.m]\nfetch = \"scripts/get m\"\n");
    std::fs::write(&path, &text).unwrap();
    let missing = || Policy::load(&path).unwrap().0.models[0].missing_files();
    let shown: Vec<_> = missing().iter().map(|d| (d.position(), d.help.clone())).collect();
    let corpus = "correct the path, or put the text there".to_owned();
    assert_eq!(shown, [((14, 8), "get it: `scripts/get m`".into()), ((3, 10), corpus)]);
    std::fs::write(folder.path().join("m.gguf"), "").unwrap();
    assert_eq!(missing().len(), 1);
    std::fs::create_dir(folder.path().join("corpora")).unwrap();
    std::fs::write(folder.path().join("corpora/c.txt"), "").unwrap();
    assert_eq!(missing(), []);
    let without = policy(BASE).models[0].missing_files();
    assert!(without[0].help.contains("say how to get it: `fetch"), "{}", without[0]);
}

#[test]
fn an_unreadable_policy_says_what_to_do() {
    let error = Policy::load(Path::new("no/such.toml")).unwrap_err().to_string();
    assert!(error.contains("`no/such.toml`") && error.contains("`--config FILE`"), "{error}");
}

#[test]
fn the_hash_is_of_the_bytes() {
    let text = edited("512", "513");
    assert_eq!(policy(BASE).sha256.len(), 64);
    assert_ne!(policy(BASE).sha256, policy(&text).sha256);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.toml");
    std::fs::write(&path, BASE).unwrap();
    assert_eq!(Policy::load(&path).unwrap().0.sha256, policy(BASE).sha256);
}

#[test]
fn the_grammar_of_the_design_is_read() {
    let text = r#"
[defaults]
corpus  = ["corpora/prose.txt", "corpora/code.txt"]
context = 512
chunks  = 16
[defaults.limits]
mean_kld       = 0.05
p99_kld        = 1.0
top1_agreement = 0.85
[defaults.schemes]
q8_0 = { limits = { mean_kld = 0.02 } }
[schemes]
prod = "q4_0:norot/q4_0"
[models.gemma-3-270m]
path   = "models/real/gemma-3-270m-q4_k_m.gguf"
fetch  = "scripts/fetch-models gemma-3-270m"
limits = { baseline_ppl = 40.0 }
[models.gemma-3-270m.schemes]
q4_0 = { expect = "fail", reason = "outliers in K: see docs" }
"q8_0/q4_0" = {}
prod = { expect = "report" }
[models.gemma-3-270m.at.long]
context = 4096
chunks  = 4
[models."Qwen3.6-35B-A3B"]
path = "x.gguf"
ignored = true
"#;
    let (policy, warnings) = parse(text).unwrap();
    let names: Vec<_> = policy.models.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["gemma-3-270m", "gemma-3-270m@long", "Qwen3.6-35B-A3B"]);
    let cases: usize = policy.models.iter().map(|m| m.cells.len()).sum();
    assert_eq!(cases, 9);
    assert!(policy.models[2].cells[0].ignored);
    // q8_0's own mean KLD is so strict that the inherited agreement adds nothing
    let idle: Vec<_> = warnings.iter().map(Diagnostic::underlined).collect();
    assert_eq!(idle, ["top1_agreement = 0.85"]);
    assert!(
        warnings[0].help.contains("or drop it for this scheme: `top1_agreement = false`"),
        "{}",
        warnings[0]
    );
}

#[test]
fn an_exact_tail_leaves_half_of_the_context_to_the_codec() {
    policy(&edited("q8_0 = {}", "\"q4_0:tail=252:sink=4\" = {}"));
    let words = &["leaves most of a context of 512 exact", "`context = 514`", "shorten its tail"];
    assert_faults(&[
        ("q8_0 = {}", "«\"q4_0:tail=253:sink=4\"» = {}", words),
        ("q8_0 = {}", "«\"q8_0/q4_0:tail=257\"» = {}", words),
        ("q8_0 = {}", "«\"q4_0@first1=q4_0:tail=257\"» = {}", words),
        // 128 newest tokens and 128 first ones are KVarN's own
        ("q8_0 = {}", "«\"kvarn4:tail=256\"» = {}", &["`context = 768`"]),
    ]);
    let named = BASE.replace("\"q4_0:norot\"", "\"q4_0:tail=257\"");
    let marked = named.replace("q8_0 = {}", "«prod» = {}");
    assert_finding(&errors(&unmark(&marked).0), &marked, words);
    // an `at` has a context of its own
    let short = BASE.replace("q8_0 = {}", "«\"q4_0:tail=128\"» = {}");
    policy(&(unmark(&short).0 + "at.short = { context = 256 }\n"));
    let marked = short + "at.short = { context = 255 }\n";
    assert_finding(&errors(&unmark(&marked).0), &marked, &["a context of 255", "`context = 256`"]);
}

#[test]
fn a_calibrated_scheme_needs_the_calibration_of_its_model() {
    let words = &["needs a calibration of `m`", "kvgate calibrate", "`calibration = \"FILE\"`"];
    assert_faults(&[
        ("q8_0 = {}", "«\"q4_0:center\"» = {}", words),
        ("q8_0 = {}", "«\"fp8_e4m3:head\"» = {}", words),
        ("q8_0 = {}", "«\"q8_0@last1=q8_0/fp8_e4m3:tensor\"» = {}", words),
    ]);
    let calibrated = edited("q8_0 = {}", "\"q4_0:center\" = {}") + "calibration = \"m.cal\"\n";
    let file = policy(&calibrated).models[0].calibration.clone();
    assert_eq!(file.as_deref(), Some(Path::new("gate/m.cal")));
    // each model has its own
    let other = calibrated.clone() + "[models.n]\npath = \"n.gguf\"\n";
    let found = errors(&other);
    assert_eq!(found.len(), 1);
    assert!(found[0].to_string().contains("needs a calibration of `n`"), "{}", found[0]);
}

#[test]
fn a_mixed_scheme_may_be_a_table_whose_lines_count_in_order() {
    let scheme = |table: &str| {
        let text = BASE.replace("\"q4_0:norot\"", table).replace("q8_0 = {}", "prod = {}");
        policy(&text).models[0].cells[0].scheme.to_string()
    };
    assert_eq!(scheme("{ default = \"q4_0\", first2 = \"q8_0\" }"), "q4_0@first2=q8_0");
    let layers = [("last1", "f16"), ("first2", "q8_0"), ("7-9", "q8_0/q5_1")];
    let table = |order: [usize; 3]| {
        let lines = order.map(|i| format!("\"{}\" = \"{}\"", layers[i].0, layers[i].1));
        scheme(&format!("{{ {}, default = \"q4_0\" }}", lines.join(", ")))
    };
    assert_eq!(table([0, 1, 2]), "q4_0@last1=f16@first2=q8_0@7-9=q8_0/q5_1");
    assert_eq!(table([2, 1, 0]), "q4_0@7-9=q8_0/q5_1@first2=q8_0@last1=f16");
}

#[test]
fn a_mixed_scheme_says_what_most_layers_have_and_which_the_others_are() {
    const PROD: &str = "prod = \"q4_0:norot\"";
    assert_faults(&[
        (PROD, "«prod» = { first2 = \"q8_0\" }", &["without a `default`", "first2 = \"q8_0\""]),
        (
            PROD,
            "prod = { default = \"q4_0\", «frist2 = \"q8_0\"» }",
            &["`@frist2=q8_0` is not LAYERS=SCHEME", "first2, last2, global or sliding"],
        ),
        (PROD, "prod = { default = \"q4_0\", «first2 = \"q8\"» }", &["unknown codec `q8`"]),
        (PROD, "prod = { default = «\"q4\"», first2 = \"q8_0\" }", &["unknown codec `q4`"]),
        (PROD, "prod = { default = \"q4_0\", first2 = «8» }", &["takes a string"]),
    ]);
}

#[test]
fn prompts_are_inherited_and_may_be_dropped() {
    let text = edited("chunks = 4", "chunks = 4\nprompts = \"p.toml\"\ngenerate = 32");
    let of = |text: &str| {
        let generate = |m: &ModelPolicy| m.generate.as_ref().map(|p| (p.file.clone(), p.tokens));
        policy(text).models.iter().map(generate).collect::<Vec<_>>()
    };
    assert_eq!(of(BASE), [None]);
    assert_eq!(of(&text), [Some(("gate/p.toml".into(), 32))]);
    assert_eq!(of(&(text.clone() + "prompts = false\n")), [None]);
    assert_eq!(of(&text.replace("generate = 32", "")), [Some(("gate/p.toml".into(), 64))]);
    let at = "at.long = { prompts = false }\nat.other = { prompts = \"q.toml\", generate = 8 }\n";
    let other = Some(("gate/q.toml".into(), 8));
    assert_eq!(of(&(text + at)), [Some(("gate/p.toml".into(), 32)), None, other]);
    assert_faults(&[
        ("chunks = 4", "chunks = 4\nprompts = «true»", &["takes a string", "prompts/default.toml"]),
        ("chunks = 4", "chunks = 4\nprompts = \"p.toml\"\ngenerate = «0»", &["at least 1"]),
    ]);
}

#[test]
fn prompts_and_calibrations_that_are_not_there_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("thresholds.toml");
    let text = edited("q8_0 = {}", "\"q4_0:center\" = {}");
    let text = text + "prompts = \"p.toml\"\ncalibration = \"m.cal\"\n";
    std::fs::write(&path, &text).unwrap();
    std::fs::create_dir(folder.path().join("corpora")).unwrap();
    for file in ["m.gguf", "corpora/c.txt"] {
        std::fs::write(folder.path().join(file), "").unwrap();
    }
    let missing = Policy::load(&path).unwrap().0.models[0].missing_files();
    let shown: Vec<_> =
        missing.iter().map(|d| (d.underlined().to_string(), d.help.clone())).collect();
    let expected = [
        ("\"m.cal\"", "make it by `kvgate calibrate`, or correct the path"),
        ("\"p.toml\"", "correct the path, or put the text there"),
    ];
    assert_eq!(shown, expected.map(|(file, help)| (file.to_string(), help.to_string())));
}

/// A reader would believe that texts are compared.
#[test]
fn generate_without_prompts_is_found_where_it_stands() {
    let words = &["`generate` without `prompts`", "name a file of prompts"];
    assert_faults(&[
        ("chunks = 4", "chunks = 4\n«generate» = 32", words),
        ("path = \"m.gguf\"", "path = \"m.gguf\"\n«generate» = 32", words),
        ("path = \"m.gguf\"", "path = \"m.gguf\"\nprompts = false\n«generate» = 32", words),
        ("path = \"m.gguf\"", "path = \"m.gguf\"\nat.x = { «generate» = 32 }", words),
    ]);
    let with =
        |model: &str| policy(&edited("path = \"m.gguf\"", &format!("path = \"m.gguf\"\n{model}")));
    with("prompts = \"p.toml\"\ngenerate = 32");
    with("generate = 32\nat.x = { prompts = \"p.toml\" }");
    // defaults are completed by models, and a model may drop what it inherits
    let defaults = edited("chunks = 4", "chunks = 4\ngenerate = 32");
    policy(&(defaults.clone() + "prompts = \"p.toml\"\n"));
    let inherited = defaults.replace("generate", "prompts = \"p.toml\"\ngenerate");
    policy(&(inherited + "prompts = false\n[models.n]\npath = \"n.gguf\"\n"));
}

#[test]
fn retrieval_is_a_model_s_own() {
    let model = "path = \"m.gguf\"\nat.long = { context = 1024 }\n";
    let retrieval = "[models.m.retrieval]\nlengths = [1024, 512]\nseed = 3\n\
                     limits = { loss = 0.05, answer_nll = 0.02 }\n";
    let policy = policy(&(edited("path = \"m.gguf\"\n", model) + retrieval));
    let [own, long] = &policy.models[..] else { panic!() };
    let Retrieval { plan, limits } = own.retrieval.as_ref().unwrap();
    let expected = Plan { lengths: vec![1024, 512], contexts: 8, needles: 8, seed: 3 };
    assert_eq!(*plan, expected);
    let bounds: Vec<_> = limits.iter().map(|limit| (limit.measure, limit.bound)).collect();
    assert_eq!(bounds, [(Measure::Loss, 0.05), (Measure::AnswerNll, 0.02)]);
    assert_eq!(limits[0].origin, "gate/thresholds.toml:18");
    assert_eq!(long.retrieval, None, "an `at` section would measure the same again");
    assert_eq!(own.places.line("", "retrieval.loss"), Some(18));
}

#[test]
fn faults_of_retrieval_are_found_where_they_stand() {
    let model = "path = \"m.gguf\"";
    let faults = [
        ("«retrieval» = {}", "without `lengths`"),
        ("«retrieval» = { seed = 1 }", "without `lengths`"),
        ("retrieval = «true»", "takes a table"),
        ("retrieval = { lengths = «512» }", "takes a list of whole numbers"),
        ("retrieval = { lengths = «[]» }", "nothing would be retrieved"),
        ("retrieval = { lengths = [«100»] }", "at least 128"),
        ("retrieval = { lengths = [512, «512»] }", "stands twice"),
        ("retrieval = { lengths = [512], «lenghts» = 1 }", "did you mean `lengths`?"),
        ("retrieval = { lengths = [512], needles = «1» }", "at least 2"),
        ("retrieval = { lengths = [512], needles = «33» }", "at most 32"),
        ("retrieval = { lengths = [512], contexts = «0» }", "at least 1"),
        ("retrieval = { lengths = [512], limits = { «los» = 0.1 } }", "did you mean `loss`?"),
        ("retrieval = { lengths = [512], limits = { loss = «1.0» } }", "below 1"),
        ("retrieval = { lengths = [512], limits = { loss = «-0.1» } }", "from 0 on"),
        ("retrieval = { lengths = [512], limits = { answer_nll = «\"1\"» } }", "takes a number"),
    ];
    for (line, words) in faults {
        let marked = edited(model, &format!("{model}\n{line}"));
        assert_finding(&errors(&unmark(&marked).0), &marked, &[words]);
    }
    // a limit on the likelihood of answers needs an interval only where there is a confidence
    let few = "retrieval = { lengths = [512], contexts = 7, limits = { «answer_nll = 0.1» } }";
    let marked = edited(model, &format!("{model}\nchunks = 8\nconfidence = 0.95\n{few}"));
    assert_finding(&errors(&unmark(&marked).0), &marked, &["7 contexts", "`contexts = 8`"]);
    for (few, enough) in [("contexts = 7", "contexts = 8"), ("answer_nll", "loss")] {
        policy(&unmark(&marked.replace(few, enough)).0);
    }
    policy(&unmark(&marked.replace("confidence = 0.95", "confidence = false")).0);
    // a sensible length depends on the model
    let marked = edited("chunks = 4", "chunks = 4\n«retrieval» = { lengths = [512] }");
    assert_finding(&errors(&unmark(&marked).0), &marked, &["unknown key `retrieval`"]);
}
