//! Documents that may grow without end: JSON with a stable schema.

use std::ffi::{CString, c_char};

use serde_json::Value;

use crate::arguments::{given, text};
use crate::error::{guard, hone_error};

/// A JSON document. Its first member, `schema`, names a schema in which members are only ever
/// added.
pub struct hone_report {
    json: CString,
    value: Value,
}

impl hone_report {
    pub(crate) fn new(json: &str) -> Result<Self, hone_error> {
        let value = serde_json::from_str(json).map_err(|e| {
            let code = crate::error::hone_code::Internal;
            hone_error::new(code, format!("the report is no JSON: {e}"))
        })?;
        let json = CString::new(json).expect("JSON escapes NUL");
        Ok(Self { json, value })
    }
}

/// The document as JSON, UTF-8; "" for NULL. Borrowed from `report`.
#[unsafe(no_mangle)]
pub extern "C" fn hone_report_json(report: Option<&hone_report>) -> *const c_char {
    report.map_or(c"".as_ptr(), |r| r.json.as_ptr())
}

/// A number of the document, by its JSON pointer (RFC 6901), such as "/total/sparsity" or
/// "/layers/0/zeros".
///
/// Errors: INVALID_ARGUMENT when there is nothing at the place or it is no number (`null` is what
/// does not apply).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_report_number(
    report: Option<&hone_report>,
    pointer: *const c_char,
    out: Option<&mut std::mem::MaybeUninit<f64>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let (report, out) = (given(report, "report")?, given(out, "out")?);
        // SAFETY: the header asks for a string or NULL.
        let pointer = unsafe { text(pointer, "pointer") }?;
        let found = report.value.pointer(pointer);
        let number = found.and_then(|v| v.as_f64().or_else(|| v.as_bool().map(f64::from)));
        let number = number.ok_or_else(|| {
            let what = found.map_or("nothing".into(), |v| v.to_string());
            hone_error::argument(format!("at {pointer:?} the report has {what:.40}, no number"))
        })?;
        out.write(number);
        Ok(())
    })
}

/// Frees a report. NULL is fine.
#[unsafe(no_mangle)]
pub extern "C" fn hone_report_free(report: Option<Box<hone_report>>) {
    drop(report);
}
