//! `kvgate suggest` in a little model repository: what it writes, what it refuses, and what it says.

use crate::support::program::{kvgate, Ran};
use crate::support::tiny::Repository;

/// A search for llama.cpp with two of its codecs. The fewest bits are those of `q4_0`.
fn suggest(repository: &Repository, more: &[&str]) -> Ran {
    kvgate(repository, &[&["suggest", "tiny", "--codecs", "q5_1,q4_0"], more].concat())
}

/// Options of a search that is short, because nothing is verified.
const SHORT: [&str; 4] = ["--verify", "0", "--chunks", "1"];

#[test]
fn a_model_of_the_policy_is_searched_and_its_policy_written() {
    let repository = Repository::new();
    let all = ["suggest", "tiny", "--chunks", "8", "--codecs", "q8_0,q5_1,q4_0"];
    kvgate(&repository, &[&all[..], &["--json", "out.json", "--write"]].concat())
        .exits(0)
        .says("lanes of single parts on 1 chunk")
        .says("for llama.cpp, only q8_0, q5_1 and q4_0")
        .says("measured KLD")
        .says("other chunks of the same texts verified")
        .says("--cache-type-k");
    let json: serde_json::Value = serde_json::from_str(&repository.text("out.json")).unwrap();
    assert_eq!((&json["format"], &json["engine"]), (&1.into(), &"llama.cpp".into()));
    assert!(json["rows"].as_array().unwrap().iter().any(|row| row["verified"].is_object()));
    kvgate(&repository, &["check"]).never_says("error");
    kvgate(&repository, &[&all[..], &["--write"]].concat()).exits(0).says("left     tiny has");
}

#[test]
fn what_was_asked_for_is_refused_before_the_search_if_it_cannot_be() {
    let repository = Repository::new();
    let refused = |more: &[&str]| suggest(&repository, more).exits(2).never_says("lanes of single");
    refused(&["--verify", "99999"]).says("are needed to verify the winners");
    // limits are made of intervals
    refused(&["--write"]).says("chunks that verify, and there are 4: --verify 8");
    refused(&["--write", "--verify", "0"]).says("--verify 8");
    refused(&["--memory", "4"]).says("such as 4GiB");
    refused(&["--bits=-1"]).says("--bits must be a number above 0");
    refused(&["--write", "--verify", "8", "--corpus", "corpus.txt"]).says("the policy's own texts");
    refused(&["--tokens", "8"]).says("--tokens must be at least 16");
    refused(&["--json", "-"]).says("no option writes to standard output: name a file");
    let foreign = ["suggest", "tiny", "--codecs", "turbo4"];
    kvgate(&repository, &foreign).exits(2).says("no codec that llama.cpp has");
    let path = ["suggest", "tiny.gguf", "--untrained", "--write", "--corpus", "corpus.txt"];
    kvgate(&repository, &path).exits(2).says("--write adds to a model of the policy");
}

#[test]
fn a_budget_that_nothing_fits_is_refused_before_the_search() {
    let repository = Repository::new();
    let refused = |more: &[&str]| {
        suggest(&repository, &[&SHORT[..], more].concat()).exits(2).never_says("lanes of single")
    };
    refused(&["--bits", "2"]).says(
        "nothing fits 2 bits per element: with the codecs that --codecs names, the fewest at 64 tokens are 4.5 bits per \
         element, by `q4_0`: allow as many (--bits 4.5), or name more --codecs",
    );
    let memory = ["--memory", "1KiB", "--sequences", "4", "--context", "4096"];
    refused(&memory)
        .says("nothing fits 1KiB for 4 sequences of 4096 tokens, which is 0 bits per element")
        .says("allow --memory 4608KiB, serve fewer --sequences, or serve a shorter --context");
    suggest(&repository, &[&SHORT[..], &["--bits", "4.5"]].concat()).exits(0).says("Serve q4_0");
    let enough = ["--memory", "4608KiB", "--sequences", "4", "--context", "4096"];
    suggest(&repository, &[&SHORT[..], &enough].concat()).exits(0).says("Serve q4_0");
    let any = ["suggest", "tiny", "--for", "any", "--bits", "1"];
    kvgate(&repository, &any).exits(2).says("with the codecs that any engine has").says("(--bits ");
}

#[test]
fn what_is_said_holds_for_the_options_that_were_given() {
    let repository = Repository::new();
    suggest(&repository, &SHORT)
        .exits(0)
        .says("Nothing was verified")
        .never_says("other chunk")
        .says("q8_0/q4_0 was measured only to compare: --codecs does not name it.");
    let all = ["suggest", "tiny", "--scout", "9"];
    kvgate(&repository, &[&all[..], &SHORT].concat())
        .exits(0)
        .says("single parts on 1 chunk, then");
    let exact = suggest(&repository, &[&SHORT[..], &["--bits", "20"]].concat()).exits(0);
    exact.says("Half precision fits, too");
    // neither layers are left out, nor is the reference served
    let vllm = ["suggest", "tiny", "--for", "vllm", "--mixed", "0"];
    kvgate(&repository, &[&vllm[..], &SHORT].concat())
        .exits(0)
        .says("6 lanes of single parts")
        .says("q8_0/q4_0 was measured only to compare: vLLM does not have it.")
        .never_says("--cache-type-k")
        .never_says("Single parts predicted");
}

#[test]
fn a_model_that_is_nowhere_is_named_with_those_of_the_policy() {
    let repository = Repository::new();
    let searched = |model: &str| kvgate(&repository, &["suggest", model]).exits(2);
    searched("tinny")
        .says("MODEL `tinny` is no file or folder")
        .says("no model of thresholds.toml (did you mean `tiny`?), which has tiny");
    searched("tiny.gguf").says("--corpus is needed");
    std::fs::remove_file(repository.path("thresholds.toml")).unwrap();
    searched("tinny").says("there is no policy thresholds.toml");
}
