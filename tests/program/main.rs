//! Tests of the program: its commands, what it says, and what it does with repositories, hubs and GitHub.

mod cli;
mod device;
#[cfg(feature = "github")]
mod github;
#[cfg(all(unix, feature = "hub"))] // elsewhere the cache has no links
mod hub;
mod init;
mod judging;
mod layers;
#[cfg(target_os = "linux")]
mod outlets;
mod paths;
#[cfg(feature = "github")]
mod post;
#[cfg(feature = "git")]
mod repository;
#[cfg(feature = "reports")]
mod sharding;
mod suggesting;
mod support;
#[cfg(unix)]
mod workflows;
