//! The layers that `src/lib.rs` states, held against what each file imports.
//!
//! Three rules: a file imports only from its own entry of `src/` and from lower ones; entries that stand side by
//! side (`·`) do not import each other; and within a folder, files and subfolders form no circle. A folder's own
//! `mod.rs` ties its files together, so it may import them and they may import it. Code under `#[cfg(test)]` is
//! exempt.

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A module's path: `["kv", "codec", "q4_0"]`.
type Module = Vec<String>;

/// A path that a file names, relative paths resolved against the file's module.
#[derive(Debug, Clone, PartialEq)]
struct Import {
    line: usize,
    path: Vec<String>,
}

/// What one file says.
#[derive(Debug, Default)]
struct Source {
    file: String,
    imports: Vec<Import>,
    /// Names that it exports again, and the paths that they stand for.
    exports: BTreeMap<String, Vec<String>>,
    /// Its modules that exist in tests only.
    test_modules: Vec<String>,
}

/// Where an entry of `src/` stands: higher numbers may import from lower ones.
type Layers = BTreeMap<String, usize>;

#[test]
fn files_import_from_lower_layers_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &root, &mut files);
    let layers = stated_layers(&std::fs::read_to_string(root.join("lib.rs")).unwrap());
    let entries: BTreeSet<&str> = files.iter().map(|(path, _)| entry(path)).collect();
    let stated: BTreeSet<&str> = layers.keys().map(String::as_str).collect();
    let unstated = ["lib", "bin", "testing"];
    let own: BTreeSet<&str> = entries.into_iter().filter(|e| !unstated.contains(e)).collect();
    assert_eq!(own, stated, "src/lib.rs states every entry of src/ in its layers, and no other");
    let faults = faults(&files, &layers);
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// The test of the test: each rule, broken once.
#[test]
fn a_forbidden_import_is_named_with_its_file_and_line() {
    let layers = stated_layers("//! ```text\n//! low  a → b\n//! side  c · d\n//! ```\n");
    assert_eq!(layers["b"], 1);
    assert_eq!((layers["c"], layers["d"]), (2, 2));
    let check = |files: &[(&str, &str)]| {
        let files: Vec<_> = files.iter().map(|(f, t)| (f.to_string(), t.to_string())).collect();
        faults(&files, &layers)
    };
    let b = ("b/mod.rs", "pub mod x;\nmod y;\npub use x::X;\n");
    let up = check(&[("a.rs", "// crate::b\nuse std::fmt;\n\nuse crate::{\n    b::X,\n};\n"), b]);
    assert_eq!(up, ["src/a.rs:5: `a` imports `b::X`, and `b` is not below `a` in src/lib.rs"]);
    let beside = check(&[("c.rs", ""), ("d.rs", "fn f() { crate::c::g(\"crate::b\") }\n")]);
    assert_eq!(beside, ["src/d.rs:1: `d` imports `c::g`, and `c` is not below `d` in src/lib.rs"]);
    let again = check(&[("a.rs", "pub(crate) use crate::b::X;\n"), b]);
    assert_eq!(again, ["src/a.rs:1: `a` imports `b::X`, and `b` is not below `a` in src/lib.rs"]);
    let root = ("lib.rs", "mod a;\nmod b;\npub use b::X;\n");
    let by_root = check(&[root, ("a.rs", "use crate::X;\n"), b]);
    assert_eq!(by_root, ["src/a.rs:1: `a` imports `X`, and `b` is not below `a` in src/lib.rs"]);
    let test = "#[cfg(test)]\nmod tests {\n    use crate::b::X;\n}\n";
    assert_eq!(check(&[("a.rs", test), b]), [""; 0]);
    let circle = check(&[
        b,
        ("b/x.rs", "use super::y::Y;\npub struct X;\n"),
        ("b/y.rs", "\nuse super::X;\n"),
    ]);
    let expected = [
        "a circle in src/b: `x` and `y` import each other:",
        "  src/b/x.rs:1: `b::y::Y`",
        "  src/b/y.rs:2: `b::X`",
    ];
    assert_eq!(circle, [expected.join("\n")]);
}

/// All files of Rust with their paths under `src/`.
fn collect(root: &Path, folder: &Path, into: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
            into.push((name, std::fs::read_to_string(&path).unwrap()));
        }
    }
    into.sort();
}

/// The entry of `src/` that a file belongs to.
fn entry(file: &str) -> &str {
    let first = file.split('/').next().unwrap();
    first.strip_suffix(".rs").unwrap_or(first)
}

/// The layers in the first text block of the crate's documentation, the lowest first. `→` goes one layer up,
/// `·` stands between entries of the same layer.
fn stated_layers(lib: &str) -> Layers {
    let docs = lib.lines().map(|line| line.trim_start_matches("//!").trim());
    let block =
        docs.skip_while(|line| *line != "```text").skip(1).take_while(|line| *line != "```");
    let mut layers = Layers::new();
    let mut rank = 0;
    for line in block {
        let (_, entries) = line.split_once(' ').expect("a layer has a name and entries");
        for step in entries.split('→') {
            layers.extend(step.split('·').map(|entry| (entry.trim().to_owned(), rank)));
            rank += 1;
        }
    }
    layers
}

fn faults(files: &[(String, String)], layers: &Layers) -> Vec<String> {
    let sources = read_all(files);
    let mut faults = Vec::new();
    for (module, source) in &sources {
        let Some(own) = module.first().filter(|own| layers.contains_key(*own)) else { continue };
        for import in &source.imports {
            // by its words, and by where they lead: the crate's root exports names of several layers again
            let leads_to = target(&import.path, &sources);
            let is_higher = |other: &&String| {
                layers.get(*other).is_some_and(|rank| *other != own && *rank >= layers[own])
            };
            let reached = import.path.first().into_iter().chain(leads_to.first());
            if let Some(other) = reached.filter(|other| is_higher(other)).map(String::clone).next()
            {
                faults.push(format!(
                    "src/{}:{}: `{own}` imports `{}`, and `{other}` is not below `{own}` in src/lib.rs",
                    source.file,
                    import.line,
                    import.path.join("::")
                ));
            }
        }
    }
    let folders: BTreeSet<&[String]> =
        sources.keys().filter_map(|module| Some(module.split_last()?.1)).collect();
    let folders = folders.into_iter().filter(|folder| !folder.is_empty());
    faults.extend(folders.filter_map(|folder| circle(folder, &sources)));
    faults
}

/// The modules of all files but those that exist in tests only.
fn read_all(files: &[(String, String)]) -> BTreeMap<Module, Source> {
    let mut sources = BTreeMap::new();
    for (file, text) in files {
        let stem = file.strip_suffix(".rs").unwrap();
        let mut module: Module = stem.split('/').map(str::to_owned).collect();
        if module.last().is_some_and(|last| last == "mod" || last == "lib") {
            module.pop();
        }
        let tokens: TokenStream = text.parse().unwrap_or_else(|e| panic!("src/{file}: {e}"));
        let mut source = Source { file: file.clone(), ..Source::default() };
        walk(tokens, &module, &mut source);
        sources.insert(module, source);
    }
    let tests: BTreeSet<Module> = sources
        .iter()
        .flat_map(|(module, source)| {
            source
                .test_modules
                .iter()
                .map(move |own| [&module[..], std::slice::from_ref(own)].concat())
        })
        .collect();
    sources.retain(|module, _| !(1..=module.len()).any(|n| tests.contains(&module[..n])));
    sources
}

/// Books every path that begins with `crate`, `super` or `self`, and every export.
fn walk(tokens: TokenStream, module: &Module, source: &mut Source) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        if is_test_attribute(&tokens[at..]) {
            at = skip_item(&tokens, at + 2, source);
            continue;
        }
        match &tokens[at] {
            TokenTree::Ident(word) if word == "use" => {
                let end = end_of_item(&tokens, at);
                let exported = at > 0 && is_visibility(&tokens[at - 1]);
                book_tree(&tokens[at + 1..end], &[], module, exported, source);
                at = end;
            }
            TokenTree::Ident(word) if word == "crate" || word == "super" => {
                at += book_path(&tokens[at..], module, source);
            }
            TokenTree::Group(group) => {
                walk(group.stream(), module, source);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

fn is_test_attribute(tokens: &[TokenTree]) -> bool {
    match tokens {
        [TokenTree::Punct(hash), TokenTree::Group(attribute), ..] => {
            hash.as_char() == '#' && attribute.stream().to_string().replace(' ', "") == "cfg(test)"
        }
        _ => false,
    }
}

/// `pub`, or the parentheses of `pub(crate)`.
fn is_visibility(token: &TokenTree) -> bool {
    match token {
        TokenTree::Ident(word) => word == "pub",
        TokenTree::Group(group) => group.delimiter() == Delimiter::Parenthesis,
        _ => false,
    }
}

/// The index behind an item that begins at `from`, whose name is booked if it is a module in a file of its own.
fn skip_item(tokens: &[TokenTree], from: usize, source: &mut Source) -> usize {
    let end = end_of_item(tokens, from);
    let words: Vec<String> = tokens[from..end].iter().map(ToString::to_string).collect();
    let name = words.iter().position(|word| word == "mod").and_then(|at| words.get(at + 1));
    if words.last().is_some_and(|last| last == ";") {
        source.test_modules.extend(name.cloned());
    }
    end
}

/// The index behind the next `;` or the next braces.
fn end_of_item(tokens: &[TokenTree], from: usize) -> usize {
    let is_use = matches!(&tokens[from], TokenTree::Ident(word) if word == "use");
    let is_end = |token: &TokenTree| match token {
        TokenTree::Punct(punct) => punct.as_char() == ';',
        TokenTree::Group(group) => !is_use && group.delimiter() == Delimiter::Brace,
        _ => false,
    };
    tokens[from..].iter().position(is_end).map_or(tokens.len(), |length| from + length + 1)
}

/// Books the leaves of a tree of imports.
fn book_tree(
    tokens: &[TokenTree],
    before: &[String],
    module: &Module,
    exported: bool,
    source: &mut Source,
) {
    let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(p) if p.as_char() == ',');
    for branch in tokens.split(is_comma).filter(|branch| !branch.is_empty()) {
        let line = branch[0].span().start().line;
        let mut path = before.to_vec();
        let mut alias = None;
        for (i, token) in branch.iter().enumerate() {
            match token {
                TokenTree::Ident(word) if word == "as" => {
                    alias = branch.get(i + 1).map(ToString::to_string);
                    break;
                }
                TokenTree::Ident(word) => path.push(word.to_string()),
                TokenTree::Group(group) => {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    book_tree(&inner, &path, module, exported, source);
                    path.clear();
                }
                _ => {}
            }
        }
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        let Some(name) = alias.or_else(|| path.last().cloned()) else { continue };
        let path = match absolute(&path, module) {
            Some(path) => path,
            // a path that begins with a name is of a module beside it, or of another crate
            None => [&module[..], &path].concat(),
        };
        if exported {
            source.exports.insert(name, path.clone());
        }
        source.imports.push(Import { line, path });
    }
}

/// Books a path outside of imports; gives the number of its tokens.
fn book_path(tokens: &[TokenTree], module: &Module, source: &mut Source) -> usize {
    let mut path = Vec::new();
    let mut length = 0;
    while let Some(TokenTree::Ident(word)) = tokens.get(length) {
        path.push(word.to_string());
        length += 1;
        match (tokens.get(length), tokens.get(length + 1)) {
            (Some(TokenTree::Punct(a)), Some(TokenTree::Punct(b)))
                if a.as_char() == ':' && a.spacing() == Spacing::Joint && b.as_char() == ':' =>
            {
                length += 2;
            }
            _ => break,
        }
    }
    if let Some(path) = absolute(&path, module).filter(|path| !path.is_empty()) {
        source.imports.push(Import { line: tokens[0].span().start().line, path });
    }
    length.max(1)
}

/// A path from the crate's root, or none if it is not of this crate as far as it says.
fn absolute(path: &[String], module: &Module) -> Option<Vec<String>> {
    match path.first()?.as_str() {
        "crate" => Some(path[1..].to_vec()),
        "self" => Some([&module[..], &path[1..]].concat()),
        "super" => {
            let ups = path.iter().take_while(|word| *word == "super").count();
            let base = module.len().checked_sub(ups)?;
            Some([&module[..base], &path[ups..]].concat())
        }
        _ => None,
    }
}

/// The module that a path leads to, exports followed.
fn target(path: &[String], sources: &BTreeMap<Module, Source>) -> Module {
    let mut path = path.to_vec();
    for _ in 0..8 {
        let length = (0..=path.len()).rev().find(|&n| sources.contains_key(&path[..n]));
        let module = path[..length.unwrap_or(0)].to_vec();
        let next = path.get(module.len()).and_then(|name| sources[&module].exports.get(name));
        match next {
            Some(next) => path = [&next[..], &path[module.len() + 1..]].concat(),
            None => return module,
        }
    }
    path
}

/// A circle among the files and subfolders of a folder, if there is one.
fn circle(folder: &[String], sources: &BTreeMap<Module, Source>) -> Option<String> {
    let child = |module: &[String]| Some(module.strip_prefix(folder)?.first()?.clone());
    let mut edges: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (module, source) in sources {
        let Some(from) = child(module) else { continue };
        for import in &source.imports {
            let Some(to) = child(&target(&import.path, sources)).filter(|to| *to != from) else {
                continue;
            };
            let shown =
                format!("src/{}:{}: `{}`", source.file, import.line, import.path.join("::"));
            edges.entry(from.clone()).or_default().entry(to).or_insert(shown);
        }
    }
    let reach = |from: &String| {
        let mut seen = BTreeSet::new();
        let mut open = vec![from.clone()];
        while let Some(one) = open.pop() {
            for next in edges.get(&one).into_iter().flat_map(BTreeMap::keys) {
                if seen.insert(next.clone()) {
                    open.push(next.clone());
                }
            }
        }
        seen
    };
    let first = edges.keys().find(|one| reach(one).contains(*one))?;
    let circle: BTreeSet<String> =
        reach(first).into_iter().filter(|one| reach(one).contains(first)).collect();
    let names: Vec<String> = circle.iter().map(|name| format!("`{name}`")).collect();
    let mut lines = vec![format!(
        "a circle in src/{}: {} import each other:",
        folder.join("/"),
        names.join(" and ")
    )];
    for (_, to) in edges.iter().filter(|(from, _)| circle.contains(*from)) {
        lines.extend(
            to.iter().filter(|(to, _)| circle.contains(*to)).map(|(_, at)| format!("  {at}")),
        );
    }
    Some(lines.join("\n"))
}
