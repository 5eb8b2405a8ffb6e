//! Pickled dictionaries of lists and NumPy arrays: the format of CIFAR's Python version. A pickle may name only the
//! functions with which NumPy pickles arrays; nothing is executed.

use std::borrow::Cow;

use cdl_core::pickle::{Format, Id, Pickle, Value};

use super::Parsed;

const FORMAT: Format = Format {
    name: "a pickle of arrays",
    opcodes: b"(NKMJUCTBX])}taesucRbqrhj\x85\x86\x87\x88\x89\x8a\x8c\x8d\x8e\x93\x94\x95\x96",
    allows: |module, name| match name {
        "_reconstruct" => matches!(module, "numpy.core.multiarray" | "numpy._core.multiarray"),
        "_frombuffer" => matches!(module, "numpy.core.numeric" | "numpy._core.numeric"),
        "ndarray" | "dtype" => module == "numpy",
        "encode" => module == "_codecs",
        _ => false,
    },
};

/// Maximum number of bytes of all strings in a list. A small pickle can contain one long string many times.
const MAX_TEXT: usize = 1 << 20;

/// Pickled dictionary.
pub(crate) struct Batch<'a>(Pickle<'a>);

impl<'a> Batch<'a> {
    /// Reads a pickle.
    pub(crate) fn read(bytes: &'a [u8]) -> Parsed<Self> {
        Pickle::read(bytes, &FORMAT).map(Self).map_err(|e| e.to_string())
    }

    /// Returns the value under `key`. Keys may be text or bytes.
    pub(crate) fn entry(&self, key: &str) -> Parsed<Id> {
        let Value::Dict(entries) = self.0.value(self.0.root) else {
            return Err("is not a pickled dictionary".into());
        };
        let is_key = |id| match self.0.call(id) {
            Some(((_, "encode"), &[text, _], _)) => self.0.text(text) == Some(key),
            _ => self.0.text(id) == Some(key),
        };
        let found = entries.iter().rev().find(|&&(id, _)| is_key(id));
        found.map(|&(_, value)| value).ok_or_else(|| format!("has no entry `{key}`"))
    }

    /// Returns the whole numbers of a list.
    pub(crate) fn ints(&self, list: Id) -> Parsed<Vec<i64>> {
        let int = |&id: &Id| self.0.int(id).ok_or_else(|| "an item is not a whole number".into());
        self.items(list)?.iter().map(int).collect()
    }

    /// Returns the strings of a list.
    pub(crate) fn strings(&self, list: Id) -> Parsed<Vec<String>> {
        let mut left = MAX_TEXT;
        let mut string = |&id: &Id| {
            let text = self.bytes(id)?;
            left = left.checked_sub(text.len()).ok_or("more than a megabyte of text")?;
            String::from_utf8(text.into_owned()).map_err(|e| e.to_string())
        };
        self.items(list)?.iter().map(&mut string).collect()
    }

    /// Returns shape and values of an array of unsigned bytes in row-major order.
    pub(crate) fn array(&self, id: Id) -> Parsed<(Vec<usize>, Cow<'a, [u8]>)> {
        let ((_, function), arguments, state) = self.0.call(id).ok_or("is not an array")?;
        let parts = state.map_or(Ok(arguments), |state| self.items(state))?;
        let (order, shape, dtype, values) = match (function, state.is_some(), parts) {
            ("_reconstruct", true, &[_, shape, dtype, order, values]) => (order, shape, dtype, values),
            // Protocol 5.
            ("_frombuffer", false, &[values, dtype, shape, order]) => (order, shape, dtype, values),
            _ => return Err("is not an array".into()),
        };
        if self.0.int(order) != Some(0) && self.0.text(order) != Some("C") {
            return Err("an array in column-major order; expected row-major".into());
        }
        match self.0.call(dtype) {
            Some(((_, "dtype"), &[width, ..], _)) if self.0.text(width) == Some("u1") => {}
            _ => return Err("an array whose values are not unsigned bytes".into()),
        }
        let size = |n| usize::try_from(n).map_err(|_| format!("an array with {n} rows or columns"));
        let shape: Vec<usize> = self.ints(shape)?.into_iter().map(size).collect::<Parsed<_>>()?;
        let values = self.bytes(values)?;
        match shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size)) {
            _ if shape.len() > 32 => Err(format!("an array with {} axes", shape.len())),
            Some(count) if count == values.len() => Ok((shape, values)),
            _ => Err(format!("an array of shape {shape:?} with {} values", values.len())),
        }
    }

    fn items(&self, id: Id) -> Parsed<&[Id]> {
        self.0.items(id).ok_or_else(|| "is not a list".into())
    }

    /// Returns a byte string. Python 3 writes one in protocol 2 as a call: `_codecs.encode(text, "latin1")`.
    fn bytes(&self, id: Id) -> Parsed<Cow<'a, [u8]>> {
        if let Value::Bytes(bytes) = self.0.value(id) {
            return Ok(Cow::Borrowed(bytes));
        }
        let Some(((_, "encode"), &[text, encoding], _)) = self.0.call(id) else {
            return Err("is not a string".into());
        };
        let (Some(text), Some("latin1")) = (self.0.text(text), self.0.text(encoding)) else {
            return Err("bytes in an unknown encoding".into());
        };
        let byte = |c| u8::try_from(c).map_err(|_| format!("`{c}` is not Latin-1"));
        text.chars().map(byte).collect::<Parsed<_>>().map(Cow::Owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_protocol_of_python_3_gives_the_same_array() -> Parsed<()> {
        let row: Vec<u8> = (0..3 * 32 * 32)
            .map(|n| (37 * 7 + 59 * (n / 1024) + 3 * (n % 32) + 5 * (n / 32 % 32)) as u8)
            .collect();
        for (protocol, bytes) in [
            (2, include_bytes!("../../tests/fixtures/streams/pickles/protocol_2").as_slice()),
            (3, include_bytes!("../../tests/fixtures/streams/pickles/protocol_3")),
            (4, include_bytes!("../../tests/fixtures/streams/pickles/protocol_4")),
            (5, include_bytes!("../../tests/fixtures/streams/pickles/protocol_5")),
        ] {
            let batch = Batch::read(bytes)?;
            let (shape, values) = batch.array(batch.entry("data")?)?;
            assert_eq!(shape, [1, 3072], "protocol {protocol}");
            assert!(*values == *row, "protocol {protocol}");
            assert_eq!(batch.ints(batch.entry("fine_labels")?)?, [1], "protocol {protocol}");
        }
        Ok(())
    }
}
