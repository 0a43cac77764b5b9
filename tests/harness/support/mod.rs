//! What the tests share with those of the program.

#[allow(dead_code)] // the executable `program` uses all of it
#[path = "../../support/program.rs"]
pub mod program;
#[allow(dead_code)] // the executable `program` uses all of it
#[path = "../../support/tiny.rs"]
pub mod tiny;
