//! GGUF files whose metadata or tensors are replaced.

/// A file in parts: what stands before the metadata, its entries, the tensors' descriptions, the data.
pub struct Metadata {
    tensors: u64,
    entries: Vec<Entry>,
    infos: Vec<u8>,
    data: Vec<u8>,
}

/// A key, and its type and value as they stand in the file.
#[derive(Clone)]
pub struct Entry {
    pub key: String,
    value: Vec<u8>,
}

/// A tensor as a file holds it.
pub struct Stored {
    pub name: String,
    /// The number of its type.
    pub code: u32,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

const ALIGNMENT: usize = 32;

/// Reads on in bytes.
struct Cursor<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Cursor<'_> {
    fn skip(&mut self, bytes: usize) -> &[u8] {
        self.at += bytes;
        &self.bytes[self.at - bytes..self.at]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.skip(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.skip(8).try_into().unwrap())
    }

    fn text(&mut self) -> String {
        let length = self.u64() as usize;
        String::from_utf8(self.skip(length).to_vec()).unwrap()
    }

    fn value(&mut self, kind: u32) {
        match kind {
            0 | 1 | 7 => drop(self.skip(1)),
            2 | 3 => drop(self.skip(2)),
            4..=6 => drop(self.skip(4)),
            10..=12 => drop(self.skip(8)),
            8 => drop(self.text()),
            9 => {
                let kind = self.u32();
                for _ in 0..self.u64() {
                    self.value(kind);
                }
            }
            other => panic!("type {other}"),
        }
    }
}

impl Metadata {
    /// The parts of a file of version 3 with the usual alignment.
    pub fn of(bytes: &[u8]) -> Self {
        let mut cursor = Cursor { bytes, at: 8 };
        let (tensors, entries) = (cursor.u64(), cursor.u64());
        let entries = (0..entries).map(|_| {
            let key = cursor.text();
            let start = cursor.at;
            let kind = cursor.u32();
            cursor.value(kind);
            Entry { key, value: bytes[start..cursor.at].to_vec() }
        });
        let entries = entries.collect();
        let start = cursor.at;
        for _ in 0..tensors {
            cursor.text();
            let dims = cursor.u32() as usize;
            cursor.skip(8 * dims + 4 + 8);
        }
        let infos = bytes[start..cursor.at].to_vec();
        let data = bytes[cursor.at.next_multiple_of(ALIGNMENT)..].to_vec();
        Metadata { tensors, entries, infos, data }
    }

    pub fn keys(&self) -> Vec<String> {
        self.entries.iter().map(|entry| entry.key.clone()).collect()
    }

    /// The same metadata with other tensors.
    pub fn with_tensors(&self, tensors: &[Stored]) -> Vec<u8> {
        let (mut infos, mut data) = (Vec::new(), Vec::new());
        for tensor in tensors {
            infos.extend((tensor.name.len() as u64).to_le_bytes());
            infos.extend(tensor.name.as_bytes());
            infos.extend((tensor.shape.len() as u32).to_le_bytes());
            infos.extend(tensor.shape.iter().rev().flat_map(|n| (*n as u64).to_le_bytes()));
            infos.extend(tensor.code.to_le_bytes());
            infos.extend((data.len() as u64).to_le_bytes());
            data.extend(&tensor.bytes);
            data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        }
        let entries = self.entries.clone();
        Metadata { tensors: tensors.len() as u64, entries, infos, data }.edited(|_| ())
    }

    /// The file with the entries that an edit makes of its own.
    pub fn edited(&self, edit: impl FnOnce(&mut Vec<Entry>)) -> Vec<u8> {
        let mut entries = self.entries.clone();
        edit(&mut entries);
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(self.tensors.to_le_bytes());
        file.extend((entries.len() as u64).to_le_bytes());
        for entry in &entries {
            file.extend((entry.key.len() as u64).to_le_bytes());
            file.extend(entry.key.as_bytes());
            file.extend(&entry.value);
        }
        file.extend(&self.infos);
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        file.extend(&self.data);
        file
    }
}

impl Entry {
    pub fn float(key: &str, value: f32) -> Self {
        Entry { key: key.into(), value: [6u32.to_le_bytes(), value.to_le_bytes()].concat() }
    }

    pub fn flag(key: &str, value: bool) -> Self {
        Entry { key: key.into(), value: [&7u32.to_le_bytes()[..], &[u8::from(value)]].concat() }
    }

    pub fn number(key: &str, value: u32) -> Self {
        Entry { key: key.into(), value: [4u32.to_le_bytes(), value.to_le_bytes()].concat() }
    }

    pub fn numbers(key: &str, values: &[u32]) -> Self {
        let head = [9u32.to_le_bytes(), 4u32.to_le_bytes()].concat();
        let numbers = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let value = [head, (values.len() as u64).to_le_bytes().to_vec(), numbers].concat();
        Entry { key: key.into(), value }
    }

    pub fn text(key: &str, value: &str) -> Self {
        let length = (value.len() as u64).to_le_bytes();
        let value = [&8u32.to_le_bytes()[..], &length, value.as_bytes()].concat();
        Entry { key: key.into(), value }
    }
}
