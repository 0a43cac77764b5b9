//! Findings in a policy. They are shown like rustc's: the place, the underlined text, and how to mend it.

use crate::text;
use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Renderer, Snippet};
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The text of a policy. Everything that points into it shares it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Text {
    pub path: PathBuf,
    pub text: String,
}

impl Text {
    /// Line and column of a byte, both counted from 1. Columns count characters.
    fn position(&self, byte: usize) -> (usize, usize) {
        let before = &self.text[..byte];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (1 + before.matches('\n').count(), 1 + before[line_start..].chars().count())
    }

    /// `thresholds.toml:12`
    pub fn origin(&self, span: &Range<usize>) -> String {
        format!("{}:{}", self.path.display(), self.line(span))
    }

    /// The line on which a span begins, counted from 1.
    pub fn line(&self, span: &Range<usize>) -> usize {
        self.position(span.start).0
    }
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The policy is refused.
    Error,
    /// The policy is accepted, but probably does not say what was meant.
    Warning,
}

/// One finding in a policy. Its `Display` is plain text; [`Diagnostic::styled`] has colours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub help: String,
    text: Arc<Text>,
    span: Range<usize>,
    /// A second place that matters for the finding, and what to say about it.
    related: Option<(Range<usize>, String)>,
}

impl Diagnostic {
    pub(super) fn new(
        severity: Severity,
        text: &Arc<Text>,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        let (message, help, text) = (message.into(), help.into(), text.clone());
        Diagnostic { severity, message, help, text, span, related: None }
    }

    pub(super) fn with_related(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.related = Some((span, label.into()));
        self
    }

    /// The path of the policy, as it was given.
    pub fn path(&self) -> &Path {
        &self.text.path
    }

    /// Line and column of the offending text, both counted from 1.
    pub fn position(&self) -> (usize, usize) {
        self.text.position(self.span.start)
    }

    /// The offending text.
    pub fn underlined(&self) -> &str {
        &self.text.text[self.span.clone()]
    }

    /// The finding in colours, for a terminal.
    pub fn styled(&self) -> String {
        self.render(&Renderer::styled())
    }

    fn render(&self, renderer: &Renderer) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let [message, help] = [&self.message, &self.help].map(|words| text::printable(words));
        let source = same_places(&self.text.text);
        let path = text::printable(&self.text.path.to_string_lossy());
        let label = self.related.as_ref().map(|(_, label)| text::printable(label));
        let related = self.related.as_ref().zip(label.as_ref());
        let related = related.map(|((span, _), label)| -> Annotation<'_> {
            AnnotationKind::Context.span(span.clone()).label(label.as_str())
        });
        let snippet = Snippet::source(source.as_ref())
            .path(path)
            .annotation(AnnotationKind::Primary.span(self.span.clone()))
            .annotations(related);
        let report = Group::with_title(level.primary_title(message.as_str()))
            .element(snippet)
            .element(Level::HELP.message(help.as_str()));
        renderer.clone().decor_style(DecorStyle::Ascii).render(&[report])
    }
}

/// Replaces characters that must not be shown. All other bytes keep their places, so that spans stay valid.
fn same_places(source: &str) -> Cow<'_, str> {
    let is_kept = |c: char| matches!(c, '\t' | '\r') || text::is_shown(c);
    if source.chars().all(is_kept) {
        return Cow::Borrowed(source);
    }
    let mut out = String::with_capacity(source.len());
    for c in source.chars() {
        if is_kept(c) {
            out.push(c)
        } else {
            out += ["?", "??", "\u{fffd}", "\u{fffd}?"][c.len_utf8() - 1]
        }
    }
    Cow::Owned(out)
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(&Renderer::plain()))
    }
}

/// Collects findings, each only once.
pub(super) struct Findings {
    text: Arc<Text>,
    list: Vec<Diagnostic>,
}

impl Findings {
    pub fn new(text: Arc<Text>) -> Self {
        Findings { text, list: Vec::new() }
    }

    pub fn error(
        &mut self,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.add(Diagnostic::new(Severity::Error, &self.text, span, message, help));
    }

    /// `at` sections inherit, so the same error of a model would otherwise be found once for each of them.
    pub fn add(&mut self, finding: Diagnostic) {
        if !self.list.contains(&finding) {
            self.list.push(finding);
        }
    }

    pub fn text(&self) -> &Arc<Text> {
        &self.text
    }

    /// Returns the warnings if there is no error, and otherwise the errors. Both are in the order of the file.
    pub fn into_warnings(mut self) -> Result<Vec<Diagnostic>, Vec<Diagnostic>> {
        self.list.sort_by_key(|finding| finding.span.start);
        let (errors, warnings): (Vec<_>, Vec<_>) =
            self.list.into_iter().partition(|finding| finding.severity == Severity::Error);
        if errors.is_empty() {
            Ok(warnings)
        } else {
            Err(errors)
        }
    }
}
