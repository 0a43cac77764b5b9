use super::*;
use crate::report::{emit, Outputs, Report};
use crate::results::shape::{Run, Shape, WorstToken, BINS};
use crate::results::verdict::Verdict;
use crate::results::Outcome;
use crate::testing::fixture;
use quick_xml::events::Event;

/// An element of a page, with the text in it.
struct Element {
    name: String,
    class: String,
    text: String,
}

/// Every element, in the order of their ends. A page that is not well-formed panics: a stranger's text
/// that became markup would be seen here.
fn elements(page: &str) -> Vec<Element> {
    let mut reader = quick_xml::Reader::from_str(page);
    let (mut open, mut closed): (Vec<Element>, Vec<Element>) = Default::default();
    loop {
        let event = reader.read_event().unwrap_or_else(|e| panic!("{e} in {page}"));
        match event {
            Event::Start(ref tag) | Event::Empty(ref tag) => {
                let mut class = String::new();
                for attribute in tag.attributes() {
                    let attribute = attribute.unwrap();
                    let key = String::from_utf8_lossy(attribute.key.as_ref()).into_owned();
                    assert!(!key.starts_with("on"), "{key}");
                    if key == "class" {
                        class = String::from_utf8_lossy(&attribute.value).into_owned();
                    }
                }
                let name = String::from_utf8_lossy(tag.name().as_ref()).into_owned();
                let element = Element { name, class, text: String::new() };
                match event {
                    Event::Empty(_) => closed.push(element),
                    _ => open.push(element),
                }
            }
            Event::End(_) => closed.extend(open.pop()),
            Event::Text(text) => {
                let text = text.decode().unwrap();
                open.iter_mut().for_each(|element| element.text += &text);
            }
            Event::GeneralRef(name) => {
                let c = match name.resolve_char_ref().unwrap() {
                    Some(c) => c.to_string(),
                    None => format!("&{};", name.decode().unwrap()),
                };
                open.iter_mut().for_each(|element| element.text.push_str(&c));
            }
            Event::Eof => break,
            _ => {}
        }
    }
    assert!(open.is_empty());
    closed
}

fn of_class<'a>(elements: &'a [Element], name: &str, class: &str) -> Vec<&'a Element> {
    let has = |e: &&Element| e.name == name && e.class.split(' ').any(|c| c == class);
    elements.iter().filter(has).collect()
}

fn named<'a>(elements: &'a [Element], name: &str) -> Vec<&'a str> {
    elements.iter().filter(|e| e.name == name).map(|e| e.text.as_str()).collect()
}

fn shape() -> Shape {
    let mut histogram = vec![0; BINS];
    (histogram[0], histogram[12], histogram[24]) = (90, 9, 1);
    let run = |i: usize| Run { from: 256 + 16 * i, mean_kld: 0.001 * i as f64 };
    let worst = WorstToken {
        category: "prose".into(),
        chunk: 3,
        position: 301,
        kld: 2.25,
        context: "the tide\nwas <low> and the".into(),
        target: " moon".into(),
        baseline: " moon".into(),
        scheme: " sun".into(),
        p: [0.93, 0.0004],
    };
    Shape { histogram, by_position: (0..16).map(run).collect(), worst: vec![worst] }
}

/// A report that has something of everything.
fn report() -> Report {
    let mut report = fixture::report();
    let m = &mut report.results.measurements[0];
    m.generated = Some(fixture::generated());
    for scheme in &mut m.schemes[..2] {
        scheme.shape = Some(shape());
        scheme.replay = Some(fixture::replay());
    }
    report.results.findings = vec![fixture::weakened()];
    report.links.run = Some("https://example.org/run/1".into());
    report.links.accept = Some("gh run download 1 && kvgate accept".into());
    report
}

fn page(report: &Report) -> (String, Vec<Element>) {
    let page = render(&report.view()).unwrap();
    let elements = elements(&page);
    for banned in ["script", "link", "img", "iframe", "object", "form", "base"] {
        assert!(named(&elements, banned).is_empty(), "{banned}");
    }
    (page, elements)
}

/// What makes a scheme red is not folded away.
#[test]
fn categories_are_open_if_one_is_red() {
    let mut report = fixture::by_category();
    let is_open = |report: &Report| {
        let page = render(&report.view()).unwrap();
        assert!(page.contains("<details class=\"categories\""));
        page.contains("<details class=\"categories\" open")
    };
    assert!(is_open(&report));
    let of_tools = report.results.cases[2].limits.last_mut().unwrap();
    (of_tools.bound, of_tools.holds) = (1.0, true);
    assert!(!is_open(&report), "another limit is what makes it red");
}

/// A narrow screen shows each of them as a card, in which the limits stand before the numbers.
#[test]
fn a_category_has_its_limits_beside_its_name_and_each_number_its_own() {
    let mut report = fixture::by_category();
    let table = |report: &Report| {
        let page = render(&report.view()).unwrap();
        let from = &page[page.find("<details class=\"categories\"").unwrap()..];
        from[..from.find("</details>").unwrap()].to_owned()
    };
    let shown = table(&report);
    for words in [
        "<table class=\"great narrow\">",
        "<th scope=\"col\" class=\"words\">category</th><th scope=\"col\" class=\"words\">limits</th><th scope=\"col\">chunks",
        "<tr class=\"bad\"><th scope=\"row\"><span class=\"mark\">✗</span>&#160;q4_0<small>gemma-3-270m</small></th>\
         <td class=\"words \">tools</td><td class=\"words bad\">✗ mean_kld 1.50 × its limit</td><td data-name=\"chunks\">2",
        "<tr class=\"neutral\"><th scope=\"row\"><span class=\"mark\">•</span>&#160;q4_0",
    ] {
        assert!(shown.contains(words), "{words}\nin\n{shown}");
    }
    report.results.cases[2].verdict = Verdict::FailsAsRequired;
    let expected = "<td class=\"words neutral\">✗ mean_kld 1.50 × its limit";
    assert!(table(&report).contains(expected), "{}", table(&report));
}

#[test]
fn a_card_is_named_with_its_driver_its_arithmetic_and_the_memory_taken_there() {
    let mut report = report();
    fixture::on_a_card(&mut report.results.measurements[0]);
    let (page, _) = page(&report);
    for words in [
        "Some Card, 139 GiB, driver for CUDA 13.0",
        "f16 weights, sums in f32",
        "12.5 GiB of the card at most",
    ] {
        assert!(page.contains(words), "{words}");
    }
}

#[test]
fn contents_in_their_order() {
    let (page, elements) = page(&report());
    let order = [
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
        "<h1>",
        "3 of 7 cases red and 1 finding",
        "<strong>The gate itself was changed:</strong>",
        "<strong>Too much harm:</strong> gemma-3-270m q4_0 (mean_kld 1.22 × its limit, set at thresholds.toml:9). Serve",
        "<dt>gemma-3-270m</dt><dd>nothing recommended: a finding is red</dd>",
        "<h2>Findings</h2>",
        "policy::weakened",
        "<h2>Schemes</h2>",
        "<summary>All columns</summary>",
        "measured by kvgate 0.1.0",
        "<h2>What is not as the policy wants</h2>",
        "kvgate accept",
        "<h2>gemma-3-270m</h2>",
        "What bits buy",
        "Divergence by position",
        "Distribution of the KLD",
        "The worst tokens",
        "Texts that part",
        "<h3>Again</h3>",
        "<h3>Controls</h3>",
        "<h3>Provenance</h3>",
        "<h2>What the words mean</h2>",
        "<dt>KLD</dt>",
        "<h2>The run</h2>",
        "<summary>results.json</summary>",
    ];
    let mut rest = page.as_str();
    for mark in order {
        let at = rest.find(mark).unwrap_or_else(|| panic!("{mark} is not where it must be"));
        rest = &rest[at..];
    }
    assert!(of_class(&elements, "header", "bad")[0].text.contains("✗ kvgate: 3 of 7"));
    assert_eq!(page.matches("http").count(), 2, "the policy of contents, and the run");
    assert!(page.contains("href=\"https://example.org/run/1\""));
}

#[test]
fn table_has_failing_rows_first() {
    let (_, elements) = page(&report());
    let tables: Vec<_> = of_class(&elements, "table", "great");
    let [deciding, all] = &tables[..] else { panic!("{} tables", tables.len()) };
    let heads = [
        (deciding, "schemeverdictbits K/Vmean KLDlimit× limitΔ goldenp99top-1"),
        (
            all,
            "schemelimitsgoldenbits K/Vmean KLDlimit× limitΔ goldenp99top-1PPL ratioB/tokenof f16flips/1khardsame text\
             half part byworst × limit",
        ),
    ];
    for (table, head) in heads {
        assert!(table.text.trim_start().starts_with(head), "{}", table.text);
    }
    let rows: Vec<_> = elements.iter().filter(|e| e.name == "tr" && !e.class.is_empty()).collect();
    let classes: Vec<_> = rows.iter().map(|row| row.class.as_str()).collect();
    let order = ["bad", "bad", "good", "neutral"];
    assert_eq!(classes, [order, order].concat());
    let has = |row: &Element, parts: &[&str]| {
        for part in parts {
            assert!(row.text.contains(part), "{part} in {}", row.text);
        }
    };
    let verdict = "✗ regressed mean_kld 1.22 × its limit, ≠ golden changed";
    let decides = ["✗\u{a0}q4_0", "0.06120 ± 0.00150", "0.051.22+206 %0.700086.12 %"];
    has(rows[0], &[&[verdict][..], &decides].concat());
    has(rows[4], &[&["its limit≠ golden", "250.0", "1.0442", "1.22"][..], &decides].concat());
    has(rows[2], &["✓ pass", "0.050.01+2.0 %"]);
    // what the policy requires to fail is never green
    has(rows[3], &["✗ (expected)"]);
    let cells = of_class(&elements, "td", "good");
    assert!(cells.iter().all(|cell| cell.text == "✓ pass"));
}

/// On a narrow screen a cell stands without its column's head.
#[test]
fn numbers_know_the_name_of_their_column() {
    let (page, _) = page(&report());
    assert!(page.contains("<td data-name=\"mean KLD\">0.06120 ± 0.00150</td>"));
    let rule = ".narrow td[data-name=\"mean KLD\"]";
    assert!(include_str!("style.css").contains(rule), "the style names the column");
}

#[test]
fn ignored_models_are_one_line() {
    let mut report = report();
    for (i, case) in report.results.cases[5..].iter_mut().enumerate() {
        (case.case, case.verdict) = (format!("tiny::q4_{i}::kld"), Verdict::Ignored);
    }
    let (page, elements) = page(&report);
    assert!(page.contains("ignored, not run: tiny</p>"));
    assert!(!named(&elements, "small").contains(&"tiny"));
}

#[test]
fn figures_have_a_point_a_scheme_and_their_numbers() {
    let (_, elements) = page(&report());
    let figures: Vec<_> = elements.iter().filter(|e| e.name == "figure").collect();
    let classes: Vec<_> = figures.iter().map(|figure| figure.class.as_str()).collect();
    assert_eq!(classes, ["frontier", "positions", "tail", "tail"]);
    // q8_0 is a disc, q4_0 a triangle, and each tail has three discs
    assert_eq!(of_class(&elements, "circle", "f-good").len(), 1 + 3);
    assert_eq!(of_class(&elements, "polygon", "f-bad").len(), 1);
    assert_eq!(of_class(&elements, "circle", "f-bad").len(), 3);
    assert_eq!(
        of_class(&elements, "line", "s-limit").len()
            + of_class(&elements, "polyline", "s-limit").len(),
        1
    );
    let frontier = &figures[0].text;
    for part in ["limit 0.05", "q4_0", "8.5", "0.000510", "0.0612", "▲ not as the policy wants"] {
        assert!(frontier.contains(part), "{part} in {frontier}");
    }
    assert!(figures[1].text.contains("256") && figures[1].text.contains("0.0150"));
    assert!(figures[2].text.contains("p50 0.0200 · p99 0.700 · max 2.25"), "{}", figures[2].text);
    assert!(elements.iter().any(|e| e.name == "table" && e.text.contains("p99.9")));
}

#[test]
fn words_are_in_their_context() {
    let (page, elements) = page(&report());
    let tokens = of_class(&elements, "li", "token");
    assert_eq!(tokens.len(), 2);
    for part in [
        "the tide↵was <low> and the moon",
        "the baseline  moon, the scheme  sun",
        "KLD 2.25 · its probability 93.0 % → 0.040 % · prose, chunk 3, position 301",
    ] {
        assert!(tokens[0].text.contains(part), "{part} in {}", tokens[0].text);
    }
    let parting = of_class(&elements, "article", "parting");
    assert!(parting[0].text.contains("tides after 2 tokens"), "{}", parting[0].text);
    assert_eq!(named(&elements, "ins")[0], "moon \"and\" stars");
    assert_eq!(named(&elements, "del")[0], "sea");
    // those that are red are unfolded
    assert_eq!(page.matches("<details class=\"worst\" open=\"\">").count(), 1);
    let commands: Vec<_> =
        of_class(&elements, "pre", "command").iter().map(|e| e.text.as_str()).collect();
    assert_eq!(
        commands,
        [
            "kvgate run gemma-3-270m::",
            "kvgate measure MODEL --corpus prose.txt --corpus code.txt --schemes q8_0,q4_0,q8_0/q4_0 \
             --context 512 --chunks 16"
        ]
    );
    assert!(named(&elements, "dd").contains(&"prose 11aa"));
}

/// Results that say one hostile text wherever they can say one, and numbers that are none.
fn hostile(hostile: &str) -> Report {
    let mut report = report();
    report.links.run = Some(format!("javascript:{hostile}"));
    report.links.accept = Some(hostile.to_owned());
    report.results.findings[0].message = hostile.to_owned();
    report.results.findings[0].place = Some(hostile.to_owned());
    let results = &mut report.results;
    results.engine = hostile.to_owned();
    results.not_needed = vec![hostile.to_owned()];
    let m = &mut results.measurements[0];
    m.model = hostile.to_owned();
    m.run.device = hostile.to_owned();
    m.run.arithmetic = Some(hostile.to_owned());
    m.run.notes = vec![hostile.to_owned(); 1_000];
    m.controls[0].must = hostile.to_owned();
    m.conditions.corpus[0].category = hostile.to_owned();
    m.generated.as_mut().unwrap().continuations[0].text = hostile.to_owned();
    for scheme in &mut m.schemes {
        scheme.scheme = hostile.to_owned();
        scheme.effective = hostile.to_owned();
    }
    let storage = m.schemes[0].storage.as_mut().unwrap();
    (storage.bits_at_context.k, storage.bits_at_context.v) = (f64::INFINITY, f64::NAN);
    let Outcome::Measured { statistics, .. } = &mut m.schemes[0].outcome else { panic!() };
    (statistics.mean_kld, statistics.max_kld, statistics.p99_kld) = (f64::NAN, f64::INFINITY, -1.0);
    let shape = m.schemes[0].shape.as_mut().unwrap();
    shape.histogram = vec![u64::MAX; 100_000];
    shape.by_position = vec![Run { from: usize::MAX, mean_kld: f64::NEG_INFINITY }; 100_000];
    let token = &mut shape.worst[0];
    (token.kld, token.p, token.context) = (f64::NAN, [1e300, f64::NAN], hostile.to_owned());
    (token.target, token.baseline, token.scheme) = (String::new(), hostile.to_owned(), "\n".into());
    let text = &mut m.schemes[0].replay.as_mut().unwrap().texts[0];
    (text.prompt, text.baseline, text.scheme) =
        (hostile.to_owned(), hostile.to_owned(), String::new());
    for case in &mut results.cases {
        case.case = format!("{hostile}::{hostile}::kld");
        case.message = hostile.to_owned();
    }
    report
}

/// Whatever a stranger's results say, it is text, and not much of it.
#[test]
fn hostile_results_stay_text() {
    let text =
        "</pre></style><script>alert(1)</script><img src=x onerror=\"y\"> ' & \u{202e}\u{7}-->";
    for text in [text.to_owned(), text.to_owned() + &"x".repeat(100_000), "x".repeat(1_000) + text]
    {
        let (page, elements) = page(&hostile(&text));
        assert!(page.len() < 3_000_000, "{}", page.len());
        assert!(!page.contains(['\u{202e}', '\u{7}']) && !page.contains("href"));
        assert!(named(&elements, "a").is_empty());
        assert_eq!(of_class(&elements, "figure", "tail").len(), 1);
    }
    let (_, elements) = page(&hostile(text));
    let title = |e: &Element| e.name == "h2" && e.text.starts_with("</pre></style><script>");
    assert!(elements.iter().any(title));
}

#[test]
fn zeros_have_a_place_on_logarithmic_axes() {
    let mut report = report();
    for scheme in &mut report.results.measurements[0].schemes {
        if let Outcome::Measured { statistics, .. } = &mut scheme.outcome {
            statistics.mean_kld = 0.0;
            (statistics.median_kld, statistics.p99_kld, statistics.max_kld) = (0.0, 0.0, 0.0);
        }
        if let Some(shape) = &mut scheme.shape {
            shape.histogram = vec![0; BINS];
            shape.histogram[0] = 100;
            shape.by_position.iter_mut().for_each(|run| run.mean_kld = 0.0);
        }
    }
    let (page, elements) = page(&report);
    assert_eq!(of_class(&elements, "circle", "f-good").len(), 1 + 3);
    // the lower end of the axis, where its line is
    let axis = page.split("<line").find(|line| line.contains("x1=\"46\"")).unwrap();
    assert!(axis.contains("261"), "{axis}");
    assert!(page.contains("cy=\"261\""), "{page}");
}

#[test]
fn nothing_judged_and_nothing_measured() {
    let mut report = report();
    report.results.findings.clear();
    report.results.cases.clear();
    let (page, elements) = super::tests::page(&report);
    assert_eq!(of_class(&elements, "header", "neutral").len(), 1);
    assert!(page.contains("3 schemes measured, nothing judged"));
    assert!(!page.contains("verdict</th>") && page.contains("B/token"));
    // a ring for each measured scheme: of no verdict
    assert_eq!(of_class(&elements, "circle", "s-neutral").len(), 2);
    report.results.measurements.clear();
    let (page, elements) = super::tests::page(&report);
    assert!(page.contains("kvgate: nothing needed measuring"));
    assert!(named(&elements, "svg").is_empty() && named(&elements, "table").is_empty());
}

#[test]
fn green_is_green() {
    let mut report = report();
    report.results.findings.clear();
    report.results.cases.retain(|case| !case.verdict.is_red());
    let (_, elements) = page(&report);
    assert!(of_class(&elements, "header", "good")[0].text.contains("✓ kvgate: 4 cases"));
    assert!(named(&elements, "h2").iter().all(|title| !title.contains("not as the policy")));
}

#[test]
fn raw_json_is_whole_where_it_fits() {
    let mut report = report();
    report.results.head = Some("a\u{202e}b<".into());
    let raw = |report: &Report| {
        let (page, elements) = page(report);
        let raw = of_class(&elements, "details", "raw").first().map(|e| e.text.clone());
        (page, raw.map(|raw| raw.trim_start_matches("results.json").to_owned()))
    };
    let (page, json) = raw(&report);
    let read: crate::results::Results = serde_json::from_str(&json.unwrap()).unwrap();
    let value = |results: &crate::results::Results| serde_json::to_value(results).unwrap();
    assert_eq!(value(&read), value(&report.results));
    assert!(!page.contains("Without the sums"));

    let schemes = &mut report.results.measurements[0].schemes;
    let Outcome::Measured { parts, .. } = &mut schemes[0].outcome else { panic!() };
    *parts = vec![parts[0].clone(); 20_000];
    let (page, json) = raw(&report);
    assert!(page.contains("Without the sums of each chunk") && page.len() < JSON);
    assert!(!json.unwrap().contains("\"parts\""));

    report.results.cases = vec![report.results.cases[2].clone(); 20_000];
    let (page, json) = raw(&report);
    assert!(page.contains("Too large for a page") && json.is_none() && page.len() < JSON);
    assert!(page.contains("red cases more than are shown"));
}

#[test]
fn another_engine_is_judged_again_by_its_logs() {
    let mut report = report();
    report.results.measurements[0].conditions.engine = "llama.cpp b11434".into();
    let (page, elements) = page(&report);
    assert!(page.contains("measured by llama.cpp b11434"));
    assert_eq!(of_class(&elements, "pre", "command")[0].text, "kvgate judge LOG…");
}

#[test]
fn a_run_leaves_the_page_beside_its_results() {
    let folder = tempfile::tempdir().unwrap();
    let outputs = Outputs { folder: Some(folder.path().into()), ..Outputs::default() };
    assert!(emit(&report(), &outputs).is_empty());
    let page = std::fs::read_to_string(folder.path().join(FILE)).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && folder.path().join("results.json").exists());
    // a page that cannot be written is a warning, and the results are there
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join(FILE)).unwrap();
    let outputs = Outputs { folder: Some(folder.path().into()), ..Outputs::default() };
    let errors = emit(&report(), &outputs);
    assert!(matches!(&errors[..], [e] if e.is_warning()), "{errors:?}");
    assert!(folder.path().join("results.json").exists());
}

#[test]
fn numbers_are_short() {
    let shown = [0.0, 0.00051, 0.0612, 2.25, 123.4, 1e300, f64::NAN].map(number);
    assert_eq!(shown, ["0", "0.000510", "0.0612", "2.25", "123", "1.00e300", "NaN"]);
    let shown = [0.5, 0.0, 0.0004, 1e-9].map(share);
    assert_eq!(shown, ["50.0 %", "0.0 %", "0.040 %", "1.0e-7 %"]);
}

#[test]
fn a_name_of_the_policy_is_no_scheme_without_it() {
    let mut report = report();
    let schemes = &mut report.results.measurements[0].schemes;
    schemes[0].scheme = "prod".into();
    (schemes[1].scheme, schemes[1].effective) =
        ("careful".into(), "q8_0 in 0-3 + q4_0 in 4".into());
    let commands = |report: &Report| -> Vec<String> {
        let (_, elements) = page(report);
        of_class(&elements, "pre", "command").iter().map(|e| e.text.clone()).collect()
    };
    assert!(commands(&report)[1].contains("--schemes q8_0,q8_0/q4_0 --context"));
    report.results.measurements[0].schemes.drain(2..);
    report.results.measurements[0].schemes.remove(0);
    assert_eq!(commands(&report), ["kvgate run gemma-3-270m::"]);
}
