//! The last defence after the checks of a `tokenizer.json`: on some unforeseen files the library that reads it
//! panics. Such a panic becomes an error.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread will be caught, so that it must not be printed.
    static IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Calls the library. A panic becomes an error with its message.
///
/// # Errors
/// A panic.
pub(super) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_CAUGHT.get() {
                previous(info);
            }
        }));
    });
    let outer = IS_CAUGHT.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    IS_CAUGHT.set(outer);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        format!("the library that reads it gives up: {}", text.unwrap_or("it does not say why"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_words() {
        let error = guarded(|| panic!("no {}", 7)).unwrap_err();
        assert!(error.ends_with("no 7"), "{error}");
        assert_eq!(guarded(|| 1), Ok(1));
    }
}
