//! Progress of long work, on standard error.

use crate::text;
use crate::text::out;
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::atomic::{AtomicU64, Ordering};

/// Is told what a run does now, how much work is done, and how much there is in all.
pub type Progress<'a> = &'a (dyn Fn(&str, u64, u64) + Sync);

/// A bar for one model. Where standard error is no terminal, a line for each tenth of the work.
pub(crate) struct Bar {
    bar: ProgressBar,
    model: String,
    /// The last tenth for which a line was printed.
    printed: AtomicU64,
}

impl Bar {
    pub fn new(model: &str) -> Self {
        let bar = ProgressBar::new(0);
        let template = "{prefix} {msg} {wide_bar} {percent:>3}% {elapsed} < {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(text::name(model));
        Bar { bar, model: model.into(), printed: AtomicU64::new(0) }
    }

    /// Shows what is done now, the work done, and the work in all, which is 0 while it is unknown.
    pub fn update(&self, what: &str, done: u64, all: u64) {
        if self.bar.is_hidden() {
            let tenth = (10 * done).checked_div(all).unwrap_or(0);
            if done == 0 {
                self.printed.store(0, Ordering::Relaxed);
            }
            if done == 0 || self.printed.fetch_max(tenth, Ordering::Relaxed) < tenth {
                let percent = if all > 0 { format!(" {} %", 10 * tenth) } else { String::new() };
                out::eprint(format!("kvgate: {}: {what}{}", self.model, percent));
            }
            return;
        }
        self.bar.set_message(text::name(what));
        self.bar.set_length(all);
        self.bar.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
