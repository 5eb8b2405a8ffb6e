//! Reader of PyTorch state dicts (`torch.save`) that executes no code.
//!
//! The file is a zip archive: one entry of raw values for each storage, and a pickle that locates each tensor in them.
//! [`crate::pickle`] parses the pickle into plain data. Only the calls that construct tensors are interpreted.

use std::{
    collections::{BTreeMap, HashMap},
    io::{Cursor, Read},
};

use candle_core::{DType, Device, Tensor};
use zip::ZipArchive;

use crate::pickle::{Format, Id, MAX_DEPTH, Pickle, Value};

/// Pickles of `torch.save` in its default protocol, 2. Any function may be named, because none is called.
const FORMAT: Format = Format {
    name: "a state dict",
    opcodes: b"(NKMJGX])}taesucRbQqrhj\x81\x85\x86\x87\x88\x89\x8a",
    allows: |_, _| true,
};

/// Keys under which training scripts save the weights.
const NESTED: [&str; 3] = ["state_dict", "model", "model_state_dict"];

/// Maximum size of all tensors together, as a multiple of the file's size. Tensors may share storage.
const MAX_SHARING: usize = 4;

/// Maximum number of axes of a tensor.
const MAX_AXES: usize = 16;
/// Maximum length in bytes of the key of a storage, which is a number.
const MAX_KEY: usize = 64;

/// Magic bytes of the files of `torch.save` since version 1.6 (a zip archive) and before.
pub(super) const ARCHIVE: &[u8] = b"PK\x03\x04";
pub(super) const LEGACY: &[u8] = b"\x80\x02\x8a\x0a";

/// Reads all tensors of a state dict, at the top level or under one of [`NESTED`]. An error message does not contain
/// the file's name, which the caller adds.
pub(super) fn read(bytes: &[u8]) -> Result<HashMap<String, Tensor>, String> {
    let mut archive = Archive::open(bytes)?;
    let pickle = archive.entry("data.pkl")?;
    let pickle = Pickle::read(&pickle, &FORMAT).map_err(|e| format!("its pickle cannot be read: {e}"))?;
    let mut storages: BTreeMap<&str, Vec<(&str, View)>> = BTreeMap::new();
    let mut allowed = bytes.len().saturating_mul(MAX_SHARING);
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

/// Zip archive, with the folder that contains all its entries.
struct Archive<'b> {
    zip: ZipArchive<Cursor<&'b [u8]>>,
    folder: String,
    /// Number of bytes that the remaining entries may have: `torch.save` neither compresses nor stores anything twice.
    left: usize,
}

impl<'b> Archive<'b> {
    fn open(bytes: &'b [u8]) -> Result<Self, String> {
        let zip = ZipArchive::new(Cursor::new(bytes))
            .map_err(|e| format!("is not a complete PyTorch file ({e}); fetch or copy it again"))?;
        let names = zip.file_names().filter_map(|name| name.ok());
        let pickle = names.filter(|name| *name == "data.pkl" || name.ends_with("/data.pkl")).min();
        let Some(pickle) = pickle else {
            return Err("is a zip archive without `data.pkl`, which `torch.save` writes".into());
        };
        let folder = pickle.trim_end_matches("data.pkl").to_string();
        let mut archive = Self { zip, folder, left: bytes.len() };
        let order = format!("{}byteorder", archive.folder);
        if archive.zip.index_for_name(&order).is_some() && archive.entry("byteorder")? != b"little" {
            return Err("its values are big-endian; save it again on a little-endian machine".into());
        }
        Ok(archive)
    }

    fn entry(&mut self, name: &str) -> Result<Vec<u8>, String> {
        let fail = |reason: String| format!("its entry `{name}` cannot be read: {reason}");
        let entry = self.zip.by_name(&format!("{}{name}", self.folder)).map_err(|e| fail(e.to_string()))?;
        let mut bytes = Vec::new();
        entry.take(self.left as u64 + 1).read_to_end(&mut bytes).map_err(|e| fail(e.to_string()))?;
        let left = self.left.checked_sub(bytes.len());
        self.left = left.ok_or_else(|| fail("the entries are larger than the file".into()))?;
        Ok(bytes)
    }
}

/// Returns names and values of the dictionary that contains tensors.
fn state_dict<'a>(pickle: &Pickle<'a>) -> Result<BTreeMap<&'a str, Id>, String> {
    let mut object = pickle.root;
    for _ in 0..MAX_DEPTH {
        let entries = match pickle.value(object) {
            Value::Dict(entries) => entries,
            Value::Call(..) => {
                return Err("contains a Python object, which only its own code can load; save its \
                     `state_dict()` instead"
                    .into());
            }
            _ => break,
        };
        // Compare each distinct key once: a pickle can repeat a long key many times.
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
                "contains no tensors at the top level or under `{}`; its keys are: {}",
                NESTED.join("`, `"),
                if keys.is_empty() { "none".into() } else { keys.join(", ") },
            ));
        };
        object = nested;
    }
    Err("contains no dictionary of tensors, which `torch.save(model.state_dict())` writes".into())
}

/// Location of a tensor's values in a storage. Offset and strides count elements.
struct View {
    dtype: DType,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl View {
    /// Returns the storage and the location of a tensor. `None` for other objects, for unsupported element types, and
    /// for empty tensors.
    fn of<'a>(pickle: &Pickle<'a>, value: Id) -> Option<(&'a str, Self)> {
        let (mut function, mut arguments, _) = pickle.call(value)?;
        for _ in 0..MAX_DEPTH {
            match (function, arguments) {
                (("torch._utils", "_rebuild_tensor_v2"), &[storage, offset, shape, strides, ..]) => {
                    return Self::new(pickle, storage, [offset, shape, strides]);
                }
                // Arguments of a parameter: tensor, `requires_grad`, hooks.
                (("torch._utils", "_rebuild_parameter"), &[tensor, ..]) => {
                    (function, arguments, _) = pickle.call(tensor)?;
                }
                // Arguments of a tensor subclass: constructor, class, arguments of the constructor.
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
            let items = pickle.items(id).filter(|items| items.len() <= MAX_AXES)?;
            items.iter().map(|&id| whole(id)).collect()
        };
        let [offset, shape, strides] = place;
        let view = Self { dtype, offset: whole(offset)?, shape: wholes(shape)?, strides: wholes(strides)? };
        let sound = view.shape.len() == view.strides.len() && !view.shape.contains(&0);
        let key = pickle.text(key).filter(|key| sound && key.len() <= MAX_KEY)?;
        Some((key, view))
    }

    /// Returns the size of the tensor in bytes; `None` if it overflows.
    fn bytes(&self) -> Option<usize> {
        self.shape.iter().try_fold(self.dtype.size_in_bytes(), |all, &n| all.checked_mul(n))
    }

    /// Copies the tensor out of its storage; `None` if it exceeds the storage.
    fn tensor(&self, storage: &[u8]) -> Option<Tensor> {
        let mut packed = Vec::with_capacity(self.bytes()?);
        self.copy(storage, 0, self.offset, &mut packed)?;
        Tensor::from_raw_buffer(&packed, self.dtype, &self.shape, &Device::Cpu).ok()
    }

    /// Copies the elements along the axes from `axis` on. `place` is the index of the first element in the storage.
    fn copy(&self, storage: &[u8], axis: usize, place: usize, packed: &mut Vec<u8>) -> Option<()> {
        // Contiguous rows of the last axis, the usual case, are copied at once.
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
