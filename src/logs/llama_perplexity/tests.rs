use crate::logs::llama_perplexity::*;
use crate::policy::Policy;

use std::path::PathBuf;

/// A genuine log: see the fixtures' README.
fn fixture(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-perplexity");
    std::fs::read_to_string(folder.join(name).with_extension("log")).unwrap()
}

fn log(name: &str) -> Log {
    parse(fixture(name).as_bytes(), name).unwrap()
}

#[track_caller]
fn error(text: &str) -> String {
    parse(text.as_bytes(), "x.log").unwrap_err().to_string()
}

/// A log without the lines that hold some words, of which there must be some.
fn without(text: &str, words: &str) -> String {
    assert!(text.contains(words), "no `{words}`");
    text.lines().filter(|line| !line.contains(words)).map(|line| format!("{line}\n")).collect()
}

#[track_caller]
fn replaced(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "no `{old}`");
    text.replace(old, new)
}

fn policy(schemes: &str) -> Policy {
    let text = format!(
        "[defaults]\ncorpus = [\"c.txt\"]\ncontext = 512\nchunks = 4\n\n[defaults.limits]\nmean_kld = 0.05\n\n\
         [models.smollm2]\npath = \"models/SmolLM2-135M-Instruct.Q4_1.gguf\"\n\n[models.smollm2.schemes]\n{schemes}"
    );
    Policy::parse(&text, Path::new("thresholds.toml")).unwrap().0
}

#[test]
fn prefixes_of_the_logger_are_no_part_of_a_line() {
    for (line, text) in [
        ("0.00.123.456 I llama_kv_cache: x = 1", "llama_kv_cache: x = 1"),
        ("12.34.567.890 W  two  blanks", "two  blanks"),
        ("I no stamp", "no stamp"),
        ("In a word", "In a word"),
        ("0.00.1x3.456 I text", "0.00.1x3.456 I text"),
        ("Mean    KLD:   0.1 ±   0.2", "Mean    KLD:   0.1 ±   0.2"),
        ("", ""),
    ] {
        assert_eq!(bare(line), text);
    }
}

#[test]
fn colours_carriage_returns_and_broken_bytes_are_read_over() {
    let plain = fixture("q8_0");
    let coloured = plain.replace("llama_kv_cache:", "\u{1b}[34mllama_kv_cache:\u{1b}[0m");
    let mut bytes = coloured.replace('\n', "\r\n").into_bytes();
    bytes.splice(0..0, [0xff, 0xfe, b'\n']);
    // a console of another encoding
    let bytes = String::from_utf8_lossy(&bytes).replace('Δ', "\u{fffd}\u{fffd}").replace('±', "+-");
    assert_eq!(parse(bytes.as_bytes(), "q8_0").unwrap(), log("q8_0"));
}

fn bytes(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-perplexity");
    std::fs::read(folder.join(name).with_extension("log")).unwrap()
}

#[test]
fn what_a_console_made_of_a_log_is_read_as_the_log() {
    for name in
        ["console-underscores", "console-questions", "powershell-cp437", "powershell-cp1252"]
    {
        assert_eq!(parse(&bytes(name), "q4_0").unwrap(), log("q4_0"), "{name}");
    }
    let text = fixture("q4_0");
    let utf16 = |unit: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(unit).collect::<Vec<_>>();
    let (little, big) = (utf16(u16::to_le_bytes), utf16(u16::to_be_bytes));
    for (what, bytes) in [
        ("UTF-8 with its mark", [b"\xef\xbb\xbf", text.as_bytes()].concat()),
        ("UTF-16, big end first", [b"\xfe\xff", &big[..]].concat()),
        ("UTF-16 without a mark", little),
        ("the same, big end first", big),
        ("carriage returns", text.replace('\n', "\r\n").into_bytes()),
        ("no sign at all", text.replace(['Δ', '±'], "").into_bytes()),
    ] {
        assert_eq!(parse(&bytes, "q4_0").unwrap(), log("q4_0"), "{what}");
    }
}

/// Builds of 2024 and 2025 say less, and rotate nothing.
#[test]
fn older_builds_are_read() {
    let newer = log("q4_0-norot").statistics;
    for (name, build) in
        [("form-2024", "b3620"), ("form-2025-01", "b4550"), ("form-2025-08", "b6100")]
    {
        let old = log(name);
        assert_eq!((old.build.to_string(), old.scheme()), (build.into(), "q4_0:norot".into()));
        assert_eq!((old.context, old.chunks, old.caches[0].cells), (512, 4, 512), "{name}");
        assert_eq!((old.architecture.as_str(), old.weights.as_str()), ("llama", "Q4_1"));
        assert_eq!(old.statistics.unknown, [Statistic::P90Kld, Statistic::P95Kld], "{name}");
        let filled = Statistics {
            p90_kld: newer.p90_kld,
            p95_kld: newer.p95_kld,
            unknown: Vec::new(),
            ..old.statistics
        };
        assert_eq!(filled, newer, "{name}");
    }
    // the first builds that rotate do not say how large heads are
    let first = log("form-2026-04");
    assert_eq!(first.scheme(), "q4_0");
    assert_eq!(first.statistics, log("q4_0").statistics);
    assert_eq!(first.effective(), "q4_0·H/q4_0·H64");
}

/// What the baseline file has is in no line of older builds: a context that is not its own does not fit the
/// printed error of a share.
#[test]
fn an_older_build_s_context_is_checked() {
    let text = fixture("q4_0");
    let unsaid = without(&text, "computing over");
    assert_eq!(parse(unsaid.as_bytes(), "q4_0").unwrap(), log("q4_0"));
    let text = fixture("form-2025-01");
    for (old, new) in [
        ("n_ctx         = 512", "n_ctx         = 768"),
        ("n_ctx         = 512", "n_ctx         = 500"),
        ("86.176 ± 1.081", "100.000 ± 0.000"),
        ("\n   4   ", "\n   5   "),
    ] {
        let text = if text.contains(old) {
            replaced(&text, old, new)
        } else {
            text.lines()
                .map(|l| {
                    if l.starts_with("Same top p:") {
                        "Same top p: 100.000 ± 0.000 %\n".to_owned()
                    } else {
                        format!("{l}\n")
                    }
                })
                .collect()
        };
        let error = error(&text);
        assert!(error.starts_with("x.log: no line says"), "{error}");
        assert!(error.contains("-c") || error.contains("how many chunks"), "{error}");
    }
    assert!(error(&without(&text, "n_ctx         =")).contains("how many chunks"));
}

#[test]
fn what_is_another_program_s_log_is_said() {
    let message = error(&fixture("form-ik"));
    assert!(message.starts_with("x.log:8: a log of ik_llama.cpp, whose caches"), "{message}");
    let old = format!("{OLD_KLD_TITLE}\nAverage:   0.010623 ±   0.000065\n");
    assert!(error(&old).contains("from before May 2024"), "{}", error(&old));
    // one percentile that is missing is a log that was cut
    let cut = without(&fixture("q4_0"), "95.0%   KLD");
    assert!(error(&cut).contains("the statistic p95_kld"), "{}", error(&cut));
    let broken = without(&fixture("q4_0"), "llama_kv_cache: size");
    let broken = format!("    + FullyQualifiedErrorId : NativeCommandError\n{broken}");
    assert!(error(&broken).contains("cmd /c"), "{}", error(&broken));
}

#[test]
fn a_limit_on_what_a_log_lacks_is_an_error_of_that_limit_alone() {
    use crate::judge::limits::judge;
    use crate::results::verdict::Verdict;
    let log = log("form-2025-08");
    let judged = |limits: &str| {
        let scheme = format!("\"q4_0:norot\" = {{ limits = {{ mean_kld = 0.9, {limits} }} }}\n");
        let policy = policy(&scheme);
        let model = &policy.models[0];
        let measured = measurement(std::slice::from_ref(&log), model).unwrap();
        assert!(crate::judge::trust::distrust_by(&measured, MeasuredBy::LlamaCpp).is_empty());
        judge(model, &model.cells[0], &measured.schemes[0].outcome, None, None)
    };
    assert_eq!(judged("p99_kld = 9.0").verdict, Verdict::Pass);
    let refused = judged("p95_kld = 9.0");
    assert_eq!(refused.verdict, Verdict::Error);
    assert!(refused.message.contains("the limit p95_kld = 9 ("), "{}", refused.message);
    assert!(refused.message.contains("cannot be judged"), "{}", refused.message);
}

#[test]
fn a_golden_of_an_older_build_says_what_is_unknown() {
    use crate::golden::Golden;
    let policy = policy("\"q4_0:norot\" = {}\n");
    let measured = measurement(&[log("form-2025-08")], &policy.models[0]).unwrap();
    let golden = Golden::of(&measured, &measured.schemes[0]).unwrap();
    let text = format!("---\n---\n{golden}");
    assert!(text.contains("p90_kld         unknown\np95_kld         unknown\n"), "{text}");
    let read = Golden::parse(&text, "g.snap").unwrap();
    assert_eq!(read.to_string(), golden.to_string());
    assert!(!read.statistics().contains_key(&Statistic::P90Kld));
    let forged = text.replace("p90_kld         unknown", "p90_kld         NaN");
    assert!(Golden::parse(&forged, "g.snap").is_err());
    let mean = text.lines().find(|line| line.starts_with("mean_kld")).unwrap();
    let forged = text.replace(mean, "mean_kld        unknown");
    assert!(Golden::parse(&forged, "g.snap").is_err());
    // it is written and read back without a null
    let value = serde_json::to_value(&measured).unwrap();
    let read: crate::results::Measurement = serde_json::from_value(value.clone()).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), value);
    assert!(!value.to_string().contains("null,\"p9"), "{value}");
}

#[test]
fn builds_say_who_they_are_in_several_ways() {
    let base = without(&fixture("q8_0"), "version: ");
    let build = |line: &str| parse(format!("{line}\n{base}").as_bytes(), "x").map(|log| log.build);
    for line in [
        "build: 11434 (0c1e5709) with GNU 12.2.0 for Linux x86_64",
        "0.00.000.123 I build: 11434 (0c1e5709) with cc (Debian 12.2.0) for x86_64-linux-gnu (debug)",
        "cmn  common_param: build 11434 (0c1e5709) with GNU 12.2.0 for Linux x86_64",
        "version: 11434 (0c1e5709)",
        "version: 0.5.0-dev (build 11434, commit 0c1e5709)",
    ] {
        let found = build(line).unwrap();
        assert_eq!((found.number, found.commit.as_str()), (11434, "0c1e5709"), "{line}");
        assert_eq!(found.to_string(), "b11434");
    }
    for line in [
        "",
        "version: many (0c1e)",
        "build: 1 (a b) with x",
        "version: 3 (../../x)",
        "version: 0 (unknown)",
    ] {
        let error = build(line).unwrap_err().to_string();
        assert!(error.contains("which build of llama.cpp ran"), "{error}");
        assert!(error.contains("--version"), "{error}");
    }
    // clones without a history count nothing
    assert_eq!(build("version: 1 (0c1e570)").unwrap().to_string(), "0c1e570");
}

#[test]
fn what_is_not_said_is_an_error_with_its_mend() {
    let text = fixture("q8_0");
    for (words, what, mend) in [
        ("llama_kv_cache: size", "how K and V are stored", "-lv 4"),
        ("loaded meta data", "which checkpoint was loaded", "-lv 4"),
        ("print_info: arch ", "the model's arch", "-lv 4"),
        ("Mean    KLD", "the statistic mean_kld", "whole log"),
        ("99.9%   KLD", "the statistic p999_kld", "whole log"),
        ("RMS Δp", "the statistic rms_dp", "whole log"),
        ("Same top p:", "the statistic top1_agreement", "whole log"),
        ("Mean PPL(Q)/PPL(base)", "the statistic ppl_ratio", "whole log"),
        ("Mean PPL(base)", "the statistic baseline_ppl", "whole log"),
    ] {
        let error = error(&without(&text, words));
        assert!(error.starts_with("x.log: no line says ") && error.contains(what), "{error}");
        assert!(error.contains(mend), "{error}");
    }
}

#[test]
fn a_log_that_ends_early_quotes_its_last_line() {
    let text = fixture("q8_0");
    let cut = text.split("====== Perplexity").next().unwrap();
    let cut = cut.trim_end();
    let last = bare(cut.lines().last().unwrap().trim());
    let message = error(cut);
    assert!(message.contains("ends before its statistics, with `"), "{message}");
    assert!(message.contains(last.split("   ").next().unwrap()), "{message}");
    assert!(error("").contains("with ``"));
    assert!(error(&format!("oh {}", "no ".repeat(1000))).len() < 400);
    // llama-perplexity prints no statistics of few tokens
    let few = replaced(cut, "over 4 chunks, n_ctx=512", "over 2 chunks, n_ctx=64");
    assert!(error(&few).contains("it scores 62 tokens"), "{}", error(&few));
}

/// llama.cpp's own refusal: a quantized V without flash attention.
#[test]
fn a_run_that_llama_cpp_refused() {
    let message = error(&fixture("refused"));
    assert!(message.contains("the log ends before its statistics, with `"), "{message}");
    assert!(message.contains("failed to create context"), "{message}");
}

#[test]
fn no_number_is_an_error_that_names_the_statistic() {
    let text = fixture("q8_0");
    for (line, statistic) in [
        ("Mean    KLD:", "mean_kld"),
        ("Maximum KLD:", "max_kld"),
        ("Median  KLD:", "median_kld"),
        ("Mean PPL(Q)                   :", "ppl"),
        ("Same top p:", "top1_agreement"),
    ] {
        for value in
            ["nan", "-nan", "inf", "-inf", "1,5", "", "0.1.2", "nan ± 0.1", "0.1 ± nan", "0.1 ±"]
        {
            let broken = text.lines().map(|l| {
                if l.starts_with(line) {
                    format!("{line} {value}\n")
                } else {
                    format!("{l}\n")
                }
            });
            let error = error(&broken.collect::<String>());
            let shown = format!("{statistic} is `{value}`, which is no number");
            assert!(error.starts_with("x.log:") && error.contains(&shown), "{error}");
        }
    }
}

#[test]
fn two_runs_are_not_one_log() {
    let text = fixture("q8_0");
    assert!(error(&format!("{text}{text}")).contains("a second run begins here"));
    let base = "perplexity: calculating perplexity over 4 chunks, n_ctx=512\n";
    let message = error(&format!("{base}{text}"));
    assert!(message.contains("that of the baseline apart"), "{message}");
    let again = format!("{text}\n{KLD_TITLE}\nMean    KLD: 0.000001 ± 0.000001\n");
    assert!(error(&again).contains("a second run"));
    // one that failed before it measured, and then that of another model
    let cut = text.find("kl_divergence: computing over").unwrap();
    for (own, other) in
        [("SmolLM2-135M-Instruct", "Other-7B"), ("arch                  = llama", "arch = qwen3")]
    {
        assert!(text.contains(own), "{own}");
        let appended = format!("{}\n{}", &text[..cut], text.replace(own, other));
        assert!(error(&appended).contains("a second run"), "{other}");
    }
}

#[test]
fn errors_that_llama_cpp_goes_on_after() {
    let text = fixture("q8_0");
    for line in [
        "0.01.000.000 E kl_divergence: inconsistent vocabulary (49152 vs 262144)",
        "0.01.000.000 E kl_divergence: base.bin has been computed with 1024, while the current context is 512. Increase it with -c and retry",
    ] {
        let error = error(&format!("{line}\n{text}"));
        assert!(error.starts_with("x.log:1: llama-perplexity reported `kl_div"), "{error}");
    }
}

/// A run with an adapter, or with other metadata, is of another model than the file.
#[test]
fn what_is_not_the_checkpoint_alone_is_refused() {
    let text = fixture("q8_0");
    for line in [
        "0.01.000.000 I llama_adapter_lora_init_impl: loading lora adapter from 'x.gguf' ...",
        "llama_lora_adapter_init_internal: loading lora adapter from 'x.gguf' ...",
        "0.00.150.000 I validate_override: Using metadata override (float) 'llama.rope.freq_base' = 1.000000",
        "0.01.000.000 E llama_adapter_cvec::apply: control vector n_embd does not match model",
    ] {
        let error = error(&format!("{line}\n{text}"));
        assert!(error.starts_with("x.log:1: `"), "{error}");
        assert!(error.contains("is not the checkpoint alone"), "{error}");
    }
    // what a checkpoint says of itself
    let said = "I llama_model_loader: - kv   2: general.description str = control vector and lora adapter from x";
    assert!(parse(format!("{said}\n{text}").as_bytes(), "x.log").is_ok());
}

#[test]
fn a_log_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.log");
    std::fs::File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
    assert!(matches!(read(&path).unwrap_err(), LogError::TooLong { .. }));
    assert!(matches!(read(&folder.path().join("none")).unwrap_err(), LogError::Read { .. }));
    let huge = replaced(&fixture("q8_0"), "over 4 chunks", "over 99999999999 chunks");
    assert!(error(&huge).contains("that can be"), "{}", error(&huge));
}

#[test]
fn caches_of_several_ways_are_no_scheme() {
    let text = fixture("q8_0");
    let line = text.lines().find(|l| l.contains("llama_kv_cache: size")).unwrap();
    // a second cache, for layers with a window
    let other = line.replace("K (q8_0)", "K (q4_0)");
    let rotation: String =
        text.lines().filter(|l| l.contains("attn_rot")).map(|l| format!("{l}\n")).collect();
    let mixed = format!("{text}{other}\n{rotation}");
    assert!(error(&mixed).contains("stored in different ways"), "{}", error(&mixed));
    let window = line.replace(" 512 cells", " 256 cells");
    assert_ne!(window, line);
    let two = parse(format!("{text}{window}\n{rotation}").as_bytes(), "x").unwrap();
    assert_eq!(two.caches.len(), 2);
    assert_eq!(two.effective(), "q8_0·H64/q8_0·H64", "one way, said once");
    let again = parse(format!("{text}{line}\n{rotation}").as_bytes(), "x").unwrap();
    assert_eq!(again.caches.len(), 1, "the same cache said twice");
}

#[test]
fn rotations_are_sized_as_llama_cpp_sizes_them() {
    for (head_dim, size) in
        [(64, 64), (128, 128), (192, 64), (256, 256), (320, 64), (576, 64), (512, 512)]
    {
        assert_eq!(power_of_two(head_dim), size, "{head_dim}");
    }
}

#[test]
fn positions_are_counted_as_the_source_counts_them() {
    assert_eq!(scored(512, 4), 4 * 255);
    assert_eq!(scored(513, 1), 256);
    assert_eq!(scored(1, 1), 0);
    assert_eq!(scored(0, 1), 0);
}

fn label_of(log: &Log, schemes: &str) -> Result<String, String> {
    let policy = policy(schemes);
    measurement(std::slice::from_ref(log), &policy.models[0])
        .map(|m| m.schemes[0].scheme.clone())
        .map_err(|error| error.to_string())
}

#[test]
fn cells_are_found_by_what_ran() {
    let all = "q8_0 = {}\nq4_0 = {}\n\"q8_0/q4_0\" = {}\nf16 = {}\n\"q4_0:norot\" = {}\n";
    for (name, label) in [
        ("q8_0", "q8_0"),
        ("q4_0", "q4_0"),
        ("q8_0-q4_0", "q8_0/q4_0"),
        ("f16", "f16"),
        ("q4_0-norot", "q4_0:norot"),
    ] {
        assert_eq!(label_of(&log(name), all).unwrap(), label);
    }
    // what asks for more than a codec a side is no cell of llama.cpp's
    let near = "\"q4_0:tail=32\" = {}\n\"q4_0@first2=q8_0\" = {}\n\"q8_0/q4_0\" = {}\n";
    let error = label_of(&log("q4_0"), near).unwrap_err();
    assert!(error.contains("its cache is `q4_0`"), "{error}");
    assert!(error.ends_with("it has `q4_0:tail=32`, `q4_0@first2=q8_0`, `q8_0/q4_0`"), "{error}");
    let error = label_of(&log("q4_0-norot"), "q4_0 = {}\n").unwrap_err();
    assert!(error.contains("its cache is `q4_0:norot`"), "{error}");
}

/// Heads that are no multiple of 64 are rotated neither by llama.cpp nor by kvgate.
#[test]
fn a_scheme_that_cannot_be_rotated_is_the_one_that_was_asked_for() {
    let mut log = log("q4_0-norot");
    for cache in &mut log.caches {
        cache.head_dim = [Some(96), Some(96)];
    }
    assert_eq!(label_of(&log, "q4_0 = {}\n").unwrap(), "q4_0");
    assert_eq!(log.effective(), "q4_0/q4_0");
}

#[test]
fn logs_of_other_runs_than_the_policy_s_are_errors() {
    let policy = policy("q8_0 = {}\nq4_0 = {}\n");
    let model = &policy.models[0];
    let error = |logs: &[Log]| measurement(logs, model).unwrap_err().to_string();
    let edited = |edit: &dyn Fn(&mut Log)| {
        let mut log = log("q8_0");
        edit(&mut log);
        log
    };
    assert!(error(&[edited(&|l| l.context = 1024)])
        .contains("the context is 1024, and the policy's `smollm2` has 512"));
    assert!(error(&[edited(&|l| l.chunks = 8)]).contains("the number of chunks is 8"));
    assert!(error(&[edited(&|l| l.model_file = "other.gguf".into())])
        .contains("the checkpoint is `other.gguf`, and the policy's `smollm2` has `SmolLM2"));
    for edit in [
        &(|l: &mut Log| l.build.number = 11434) as &dyn Fn(&mut Log),
        &|l| l.device = "cuda".into(),
        &|l| l.statistics.baseline_ppl += 0.000001,
    ] {
        let error = error(&[log("q4_0"), edited(edit)]);
        assert!(error.contains("logs of one model must be of one build"), "{error}");
    }
    assert!(error(&[log("q8_0"), log("q8_0")]).contains("another log of `q8_0`, as is q8_0"));
    assert_eq!(error(&[]), "no log to judge");
}

/// A checkpoint in safetensors has been converted to a file of any name.
#[test]
fn only_a_gguf_file_has_a_name_to_compare() {
    let mut policy = policy("q8_0 = {}\n");
    policy.models[0].source.path = PathBuf::from("models/smollm2");
    assert!(measurement(&[log("q8_0")], &policy.models[0]).is_ok());
}

#[test]
fn a_genuine_log_is_what_it_says() {
    let log = log("q4_0");
    assert_eq!(log.engine_name(), "llama.cpp 0c1e570");
    assert_eq!(log.build, Build { number: 1, commit: "0c1e570".into() });
    assert_eq!(log.model_file, "SmolLM2-135M-Instruct.Q4_1.gguf");
    assert_eq!((log.architecture.as_str(), log.weights.as_str()), ("llama", "Q4_1"));
    assert_eq!(log.device, "cpu");
    assert_eq!((log.context, log.chunks), (512, 4));
    assert_eq!(log.seconds, Some(44.88808));
    assert_eq!(log.scheme(), "q4_0");
    assert_eq!(log.effective(), "q4_0·H64/q4_0·H64");
    assert_eq!(
        log.statistics,
        Statistics {
            tokens_scored: 1020,
            mean_kld: 0.062620,
            mean_kld_se: 0.003415,
            median_kld: 0.032202,
            p90_kld: 0.116018,
            p95_kld: 0.180748,
            p99_kld: 0.650032,
            p999_kld: 0.881032,
            max_kld: 1.203433,
            top1_agreement: 86.176 / 100.0,
            top1_agreement_se: 1.081 / 100.0,
            rms_dp: 6.781 / 100.0,
            rms_dp_se: 0.505 / 100.0,
            ppl: 34.141915,
            ppl_se: 3.269391,
            ppl_ratio: 1.032334,
            ppl_ratio_se: 0.012939,
            baseline_ppl: 33.072544,
            unknown: Vec::new(),
        }
    );
    // 1020 positions: the printed error is that of a share of so many
    let share = log.statistics.top1_agreement;
    let error = (share * (1.0 - share) / 1019.0).sqrt();
    assert!((error - log.statistics.top1_agreement_se).abs() < 1e-5, "{error}");
}

#[test]
fn a_genuine_log_says_how_k_and_v_are_stored() {
    for (name, scheme, effective) in [
        ("f16", "f16", "f16/f16"),
        ("q8_0", "q8_0", "q8_0·H64/q8_0·H64"),
        ("q8_0-q4_0", "q8_0/q4_0", "q8_0·H64/q4_0·H64"),
        ("q4_0-norot", "q4_0:norot", "q4_0/q4_0"),
    ] {
        let log = log(name);
        assert_eq!((log.scheme(), log.effective()), (scheme.into(), effective.into()));
    }
}

#[test]
fn costs_are_the_cache_s_own() {
    let storage = log("q8_0-q4_0").storage().unwrap();
    assert_eq!(storage.bits_per_element, Sides { k: 8.5, v: 4.5 });
    // 30 layers of 3 heads of 64, and the log has two decimals
    let bytes = 30.0 * 3.0 * 64.0 * (8.5 + 4.5) / 8.0;
    assert!((storage.bytes_per_token / bytes - 1.0).abs() < 2e-3, "{storage:?}");
    assert!((storage.ratio_to_f16 - 13.0 / 32.0).abs() < 2e-3, "{storage:?}");
    let halves = log("f16").storage().unwrap();
    assert_eq!(halves.charged_share, Sides { k: 0.0, v: 0.0 });
    assert!((halves.ratio_to_f16 - 1.0).abs() < 1e-9, "{halves:?}");
}

#[test]
fn the_device_is_the_first_that_layers_were_given_to() {
    let text = fixture("q8_0");
    let using = "0.00.100.000 I llama_prepare_model_devices: using device CUDA0 (NVIDIA H100) (0000:1) - 80000 MiB free\n";
    let device = |text: String| parse(text.as_bytes(), "x").unwrap().device;
    assert_eq!(
        device(format!("{using}load_tensors: offloaded 31/31 layers to GPU\n{text}")),
        "cuda"
    );
    assert_eq!(device(format!("{using}load_tensors: offloaded 0/31 layers to GPU\n{text}")), "cpu");
    assert_eq!(device(format!("{using}{text}")), "cpu");
}
