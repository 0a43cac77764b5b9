//! What other engines measured: readers of their logs.
//!
//! A release engineer trusts the engine that they ship. What it measured is judged by the same
//! policy, compared with goldens of its own, and never with those of another engine.

pub mod llama_perplexity;
