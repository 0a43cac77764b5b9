//! Test data that several modules share.

pub mod fixture;
#[allow(dead_code)] // integration tests use the rest
#[path = "../../tests/support/tiny.rs"]
pub mod tiny;
