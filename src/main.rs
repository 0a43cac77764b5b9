use kvgate::measure::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let source = kvgate::policy::Source { path: a[1].clone().into(), sha256: None, tokenizer: None, fetch: None };
    let schemes: Vec<_> = a[5].split(',').map(|s| (s.to_string(), s.parse().unwrap())).collect();
    let corpus: Vec<std::path::PathBuf> = a[2].split(',').map(|s| s.into()).collect();
    let mimic = match a.get(6).map(|s| s.as_str()) { Some("cpu") => Some(mimic::Mimic::LlamaCppCpu), Some(_) => Some(mimic::Mimic::LlamaCppCuda), None => None };
    let r = Request { model: "m", source: &source, corpus: &corpus, context: a[3].parse().unwrap(), chunks: a[4].parse().unwrap(), baseline: "f16".parse().unwrap(), schemes, weights: None, mimic };
    let m = measure(&r, &|_, _, _| ()).unwrap_or_else(|e| panic!("{e}")).measurement;
    println!("{:?}\n{:?}\n{:?}", m.run, m.controls, m.conditions);
    for s in m.schemes { match s.outcome { kvgate::results::Outcome::Measured{statistics: t,..} => println!("{:16} {:20} mean {:.6} ±{:.6} med {:.6} p90 {:.6} p99 {:.6} max {:.3} top {:.5} ratio {:.6} rms {:.5} ppl {:.5}", s.scheme, s.effective, t.mean_kld, t.mean_kld_se, t.median_kld, t.p90_kld, t.p99_kld, t.max_kld, t.top1_agreement, t.ppl_ratio, t.rms_dp, t.baseline_ppl), kvgate::results::Outcome::Failed{error} => println!("{} {error}", s.scheme) } }
}
