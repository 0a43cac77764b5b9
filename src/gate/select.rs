//! Decides which cases the arguments of `cargo test`, `kvgate run` and `kvgate plan` mean.

use super::{Case, Project};

/// Which cases run, depending on whether the policy ignores them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// Ignored cases do not run. This is the default.
    LeaveOut,
    /// Ignored cases run like all others, as `--include-ignored` says.
    Include,
    /// Only ignored cases run, as libtest's `--ignored` says.
    Only,
}

impl Ignored {
    pub fn included(include: bool) -> Self {
        if include {
            Ignored::Include
        } else {
            Ignored::LeaveOut
        }
    }
}

/// A selection of cases by their names.
#[derive(Debug, Clone)]
pub struct Selection<'a> {
    /// A case is selected if its name matches one of these, or if there are none.
    pub filters: &'a [String],
    /// A case whose name matches one of these is not selected.
    pub skip: &'a [String],
    /// Whether a name matches only as a whole; otherwise it is enough that it contains the filter.
    pub exact: bool,
    /// Which of the selected cases run.
    pub ignored: Ignored,
}

impl<'a> Selection<'a> {
    /// The cases whose names contain one of the filters.
    pub fn containing(filters: &'a [String], ignored: Ignored) -> Self {
        Selection { filters, skip: &[], exact: false, ignored }
    }

    /// Whether a case is listed: ignored cases are, though they may not run.
    pub fn names(&self, case: &Case) -> bool {
        let matches = |filters: &[String]| filters.iter().any(|filter| self.matches(case, filter));
        (self.filters.is_empty() || matches(self.filters)) && !matches(self.skip)
    }

    /// Whether a case that is listed runs.
    pub fn runs(&self, case: &Case) -> bool {
        match self.ignored {
            Ignored::LeaveOut => !case.ignored,
            Ignored::Include => true,
            Ignored::Only => case.ignored,
        }
    }

    /// The first filter that no case matches. It is probably a typing error, which would pass unseen beside
    /// filters that match.
    pub fn unmatched_filter(&self, project: &Project) -> Option<&'a String> {
        let cases = project.cases();
        self.filters.iter().find(|filter| !cases.iter().any(|case| self.matches(case, filter)))
    }

    fn matches(&self, case: &Case, filter: &str) -> bool {
        if self.exact {
            case.name == filter
        } else {
            case.name.contains(filter)
        }
    }
}

/// The message for filters that select no case: the reason, and the names that could be typed instead.
pub fn nothing_selected(project: &Project, filters: &[String]) -> String {
    let all = project.cases();
    let shown: Vec<_> = all.iter().take(6).map(|case| format!("  {}", case.name)).collect();
    let more = match all.len().saturating_sub(shown.len()) {
        0 => String::new(),
        n => format!("\n  … and {n} more"),
    };
    let what = match filters {
        [] => "no case is left: --skip and --ignored leave none, or all are ignored \
               (--include-ignored runs them)"
            .to_string(),
        [filter, ..] if all.iter().any(|case| case.ignored && case.name.contains(filter)) => {
            format!("all that matches `{filter}` is ignored: --include-ignored runs it")
        }
        [filter, ..] => format!(
            "no case of the gate that is not ignored matches `{}`; for a unit test of that name: \
             cargo test --lib {filter}",
            filters.join("`, `")
        ),
    };
    format!("error: nothing selected: {what}\ncases are:\n{}{more}", shown.join("\n"))
}
