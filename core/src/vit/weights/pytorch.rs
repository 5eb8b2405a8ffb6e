//! PyTorch state dicts (`torch.save`), read without running anything.
//!
//! The file is a zip archive: raw numbers, one entry for each storage, and a pickle that locates each tensor in them.
//! [`crate::pickle`] turns the pickle into plain data, of which only the few calls that make tensors are understood.

use std::{
    collections::{BTreeMap, HashMap},
    io::{Cursor, Read},
};

use candle_core::{DType, Device, Tensor};
use zip::ZipArchive;

use crate::pickle::{Format, Id, MAX_DEPTH, Pickle, Value};

/// Pickles of `torch.save` in its default protocol, 2. Any function may be named: none is called.
const FORMAT: Format = Format {
    name: "a state dict",
    opcodes: b"(NKMJGX])}taesucRbQqrhj\x81\x85\x86\x87\x88\x89\x8a",
    allows: |_, _| true,
};

/// Keys under which training scripts keep the weights.
const NESTED: [&str; 3] = ["state_dict", "model", "model_state_dict"];

/// Tensors may share numbers, but all together are no larger than so many times the file.
const MOST_SHARING: usize = 4;

/// Axes of a tensor, and bytes of the key of its storage, a number. Objects with more are no weights.
const MOST_AXES: usize = 16;
const MOST_KEY: usize = 64;

/// Beginning of the files of `torch.save`, of today and before version 1.6.
pub(super) const ARCHIVE: &[u8] = b"PK\x03\x04";
pub(super) const LEGACY: &[u8] = b"\x80\x02\x8a\x0a";

/// All tensors of a state dict, at the top or under one of [`NESTED`]; the message begins after the file's name.
pub(super) fn read(bytes: &[u8]) -> Result<HashMap<String, Tensor>, String> {
    let mut archive = Archive::open(bytes)?;
    let pickle = archive.entry("data.pkl")?;
    let pickle = Pickle::read(&pickle, &FORMAT).map_err(|e| format!("its pickle cannot be read: {e}"))?;
    let mut storages: BTreeMap<&str, Vec<(&str, View)>> = BTreeMap::new();
    let mut allowed = bytes.len().saturating_mul(MOST_SHARING);
    for (name, value) in state_dict(&pickle)? {
        let Some((storage, view)) = View::of(&pickle, value) else { continue };
        let bytes = view.bytes().and_then(|bytes| allowed.checked_sub(bytes));
        allowed = bytes.ok_or_else(|| format!("`{name}` is larger than the file: {:?}", view.shape))?;
        storages.entry(storage).or_default().push((name, view));
    }
    let mut tensors = HashMap::new();
    for (storage, views) in storages {
        let numbers = archive.entry(&format!("data/{storage}"))?;
        for (name, view) in views {
            let tensor = view.tensor(&numbers).ok_or_else(|| {
                format!("`{name}`, {:?}, is not within the {} bytes it refers to", view.shape, numbers.len())
            })?;
            tensors.insert(name.to_string(), tensor);
        }
    }
    Ok(tensors)
}

/// The zip archive, with the folder that all its entries are in.
struct Archive<'b> {
    zip: ZipArchive<Cursor<&'b [u8]>>,
    folder: String,
    /// What the entries yet to be read may have in all: `torch.save` compresses nothing and stores nothing twice.
    left: usize,
}

impl<'b> Archive<'b> {
    fn open(bytes: &'b [u8]) -> Result<Self, String> {
        let zip = ZipArchive::new(Cursor::new(bytes))
            .map_err(|e| format!("not a complete PyTorch file ({e}); fetch or copy it again"))?;
        let names = zip.file_names().filter_map(|name| name.ok());
        let pickle = names.filter(|name| *name == "data.pkl" || name.ends_with("/data.pkl")).min();
        let Some(pickle) = pickle else {
            return Err("a zip archive without `data.pkl`, which `torch.save` writes".into());
        };
        let folder = pickle.trim_end_matches("data.pkl").to_string();
        let mut archive = Self { zip, folder, left: bytes.len() };
        let order = format!("{}byteorder", archive.folder);
        if archive.zip.index_for_name(&order).is_some() && archive.entry("byteorder")? != b"little" {
            return Err("its numbers are big-endian; save it again on an ordinary machine".into());
        }
        Ok(archive)
    }

    fn entry(&mut self, name: &str) -> Result<Vec<u8>, String> {
        let fail = |reason: String| format!("its entry `{name}` cannot be read: {reason}");
        let entry = self.zip.by_name(&format!("{}{name}", self.folder)).map_err(|e| fail(e.to_string()))?;
        let mut bytes = Vec::new();
        entry.take(self.left as u64 + 1).read_to_end(&mut bytes).map_err(|e| fail(e.to_string()))?;
        let left = self.left.checked_sub(bytes.len());
        self.left = left.ok_or_else(|| fail("the entries have more than the file".into()))?;
        Ok(bytes)
    }
}

/// Names and values of the dictionary that holds tensors.
fn state_dict<'a>(pickle: &Pickle<'a>) -> Result<BTreeMap<&'a str, Id>, String> {
    let mut object = pickle.root;
    for _ in 0..MAX_DEPTH {
        let entries = match pickle.value(object) {
            Value::Dict(entries) => entries,
            Value::Call(..) => {
                return Err("holds a Python object, which only its own code could make; save its \
                     `state_dict()` instead"
                    .into());
            }
            _ => break,
        };
        // Keys are compared once each: a long one may be repeated.
        let entries: BTreeMap<Id, Id> = entries.iter().copied().collect();
        let entries: BTreeMap<&str, Id> =
            entries.into_iter().filter_map(|(key, value)| Some((pickle.text(key)?, value))).collect();
        if entries.values().any(|&value| View::of(pickle, value).is_some()) {
            return Ok(entries);
        }
        let mut nested = NESTED.iter().filter_map(|key| entries.get(key));
        let Some(&nested) = nested.find(|&&id| matches!(pickle.value(id), Value::Dict(_))) else {
            let keys: Vec<_> = entries.keys().map(|key| format!("`{key}`")).take(8).collect();
            return Err(format!(
                "holds no tensors at the top or under `{}`; its keys are: {}",
                NESTED.join("`, `"),
                if keys.is_empty() { "none".into() } else { keys.join(", ") },
            ));
        };
        object = nested;
    }
    Err("holds no dictionary of tensors, as `torch.save(model.state_dict())` would".into())
}

/// Where a tensor's numbers are within a storage; offset and strides count elements.
struct View {
    dtype: DType,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl View {
    /// Storage and place of a tensor. `None` for whatever else stands in a dictionary, for types that
    /// no weight has, and for tensors without numbers.
    fn of<'a>(pickle: &Pickle<'a>, value: Id) -> Option<(&'a str, Self)> {
        let (mut function, mut arguments, _) = pickle.call(value)?;
        for _ in 0..MAX_DEPTH {
            match (function, arguments) {
                (("torch._utils", "_rebuild_tensor_v2"), &[storage, offset, shape, strides, ..]) => {
                    return Self::new(pickle, storage, [offset, shape, strides]);
                }
                // A parameter: the tensor, whether it learns, hooks.
                (("torch._utils", "_rebuild_parameter"), &[tensor, ..]) => {
                    (function, arguments, _) = pickle.call(tensor)?;
                }
                // A subclass or a tensor with attributes: the call that makes it, its class, that call's arguments.
                (("torch._tensor", "_rebuild_from_type_v2"), &[inner, _, given, ..]) => {
                    (function, arguments) = (pickle.global(inner)?, pickle.items(given)?);
                }
                _ => return None,
            }
        }
        None
    }

    fn new<'a>(pickle: &Pickle<'a>, storage: Id, place: [Id; 3]) -> Option<(&'a str, Self)> {
        let &Value::Persistent(storage) = pickle.value(storage) else { return None };
        let &[_, kind, key, ..] = pickle.items(storage)? else { return None };
        let dtype = match pickle.global(kind)? {
            ("torch", "FloatStorage") => DType::F32,
            ("torch", "DoubleStorage") => DType::F64,
            ("torch", "HalfStorage") => DType::F16,
            ("torch", "BFloat16Storage") => DType::BF16,
            ("torch", "LongStorage") => DType::I64,
            ("torch", "IntStorage") => DType::I32,
            ("torch", "ByteStorage") => DType::U8,
            _ => return None,
        };
        let whole = |id: Id| usize::try_from(pickle.int(id)?).ok();
        let wholes = |id: Id| -> Option<Vec<usize>> {
            let items = pickle.items(id).filter(|items| items.len() <= MOST_AXES)?;
            items.iter().map(|&id| whole(id)).collect()
        };
        let [offset, shape, strides] = place;
        let view = Self { dtype, offset: whole(offset)?, shape: wholes(shape)?, strides: wholes(strides)? };
        let sound = view.shape.len() == view.strides.len() && !view.shape.contains(&0);
        let key = pickle.text(key).filter(|key| sound && key.len() <= MOST_KEY)?;
        Some((key, view))
    }

    /// What the tensor takes by itself; `None` if that is no number.
    fn bytes(&self) -> Option<usize> {
        self.shape.iter().try_fold(self.dtype.size_in_bytes(), |all, &n| all.checked_mul(n))
    }

    /// The tensor, copied out of its storage; `None` if it reaches beyond.
    fn tensor(&self, storage: &[u8]) -> Option<Tensor> {
        let mut packed = Vec::with_capacity(self.bytes()?);
        self.copy(storage, 0, self.offset, &mut packed)?;
        Tensor::from_raw_buffer(&packed, self.dtype, &self.shape, &Device::Cpu).ok()
    }

    /// Copies the elements along all axes from `axis` on, the first of which is element `place` of the storage.
    fn copy(&self, storage: &[u8], axis: usize, place: usize, packed: &mut Vec<u8>) -> Option<()> {
        // Rows of the last axis are copied whole where they lie side by side, as they nearly always do.
        let together = match self.shape[axis..] {
            [] => 1,
            [row] if self.strides[axis] == 1 => row,
            [count, ..] => {
                let place = |i: usize| place.checked_add(i.checked_mul(self.strides[axis])?);
                return (0..count).try_for_each(|i| self.copy(storage, axis + 1, place(i)?, packed));
            }
        };
        let size = self.dtype.size_in_bytes();
        let start = place.checked_mul(size)?;
        packed.extend_from_slice(storage.get(start..start.checked_add(together * size)?)?);
        Some(())
    }
}
