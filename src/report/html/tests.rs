use super::*;

#[test]
fn look() {
    let path = std::env::var("LOOK").unwrap();
    let results = crate::report::json::read(Path::new(&path)).unwrap();
    std::fs::write(std::env::var("PAGE").unwrap(), render(&results.into()).unwrap()).unwrap();
}
