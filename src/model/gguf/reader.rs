//! Reads the values of a GGUF header one after the other.
//!
//! Nothing is allocated before it is known that the file has the bytes for it.

use candle_core::quantized::gguf_file::Value;

/// How deep arrays may be nested. llama.cpp and `gguf` know only flat ones.
const DEEPEST: usize = 4;

/// How many values all metadata may have: about ten times those of the largest vocabularies. There is a bound because
/// a value takes more memory than bytes in the file.
const MOST_VALUES: usize = 1 << 25;

/// A position in a file that only moves forward.
pub(super) struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
    /// Values that were read so far.
    values: usize,
    /// The offset of the first text that is not UTF-8 since this was last asked for.
    not_utf8: Option<usize>,
}

impl<'b> Reader<'b> {
    pub fn new(bytes: &'b [u8]) -> Self {
        Reader { bytes, at: 0, values: 0, not_utf8: None }
    }

    /// The offset of the next byte.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The offset of a text that is not UTF-8, if there was one since the last call.
    pub fn take_not_utf8(&mut self) -> Option<usize> {
        self.not_utf8.take()
    }

    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn next_bytes(&mut self, length: u64) -> Result<&'b [u8], String> {
        if length > self.left() {
            return Err(format!(
                "the {length} bytes from byte {} on go beyond the file's {} (truncated?)",
                self.at,
                self.bytes.len()
            ));
        }
        let taken = &self.bytes[self.at..][..length as usize];
        self.at += length as usize;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.next_bytes(N as u64)?;
        Ok(bytes.try_into().expect("as many bytes were taken"))
    }

    pub fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// The bytes of a text. Some writers end texts with a NUL as in C, which is left out.
    fn text_bytes(&mut self) -> Result<&'b [u8], String> {
        let length = self.u64()?;
        let bytes = self.next_bytes(length)?;
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        Ok(&bytes[..end])
    }

    /// The name of a key or a tensor.
    pub fn name(&mut self) -> Result<&'b str, String> {
        let start = self.at;
        let bytes = self.text_bytes()?;
        let name = std::str::from_utf8(bytes)
            .map_err(|_| format!("its name at byte {start} is no UTF-8"))?;
        if name.is_empty() {
            return Err(format!("its name at byte {start} is empty"));
        }
        // C programs would read the name only up to the NUL, and so as another name
        if name.contains('\0') {
            return Err(format!("its name at byte {start} holds a NUL"));
        }
        Ok(name)
    }

    fn text(&mut self) -> Result<String, String> {
        let start = self.at;
        let text = String::from_utf8_lossy(self.text_bytes()?);
        if matches!(text, std::borrow::Cow::Owned(_)) {
            self.not_utf8.get_or_insert(start);
        }
        Ok(text.into_owned())
    }

    /// A value, which is preceded by its type.
    pub fn typed_value(&mut self) -> Result<Value, String> {
        let code = self.u32()?;
        self.value(code, 0)
    }

    fn value(&mut self, code: u32, depth: usize) -> Result<Value, String> {
        Ok(match code {
            0 => Value::U8(u8::from_le_bytes(self.array()?)),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(u32::from_le_bytes(self.array()?)),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.flag()?),
            8 => Value::String(self.text()?),
            9 => Value::Array(self.values(depth + 1)?),
            10 => Value::U64(u64::from_le_bytes(self.array()?)),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            code => return Err(format!("its type {code} is none of GGUF's")),
        })
    }

    fn flag(&mut self) -> Result<bool, String> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(format!("it is {other}, which is neither true (1) nor false (0)")),
        }
    }

    fn values(&mut self, depth: usize) -> Result<Vec<Value>, String> {
        if depth > DEEPEST {
            return Err(format!("its arrays are nested deeper than {DEEPEST}"));
        }
        let (code, count) = (self.u32()?, self.u64()?);
        let least = least_bytes(code)?;
        if count.checked_mul(least).is_none_or(|bytes| bytes > self.left()) {
            return Err(format!(
                "an array of {count} values at byte {} goes beyond the file's {} bytes (truncated?)",
                self.at,
                self.bytes.len()
            ));
        }
        self.values = self.values.saturating_add(count as usize);
        if self.values > MOST_VALUES {
            return Err(format!("the metadata has more than {MOST_VALUES} values up to here"));
        }
        let mut values = Vec::with_capacity(count as usize);
        for entry in 0..count {
            let value = self.value(code, depth).map_err(|e| format!("entry {entry}: {e}"))?;
            values.push(value);
        }
        Ok(values)
    }
}

/// The least number of bytes that a value of a type takes.
fn least_bytes(code: u32) -> Result<u64, String> {
    Ok(match code {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        9 => 12,
        code => return Err(format!("its entries' type {code} is none of GGUF's")),
    })
}
