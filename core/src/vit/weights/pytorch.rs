//! Reader of PyTorch state dicts (`torch.save`) that executes no code.
//!
//! The file is a zip archive: one entry of raw values for each storage, and a pickle that locates each tensor in them.
//! [`crate::pickle`] parses the pickle into plain data. Only the calls that construct tensors are interpreted.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::{Cursor, Read},
};

use candle_core::{DType, Device, Tensor};
use zip::ZipArchive;

use super::stored::{Contents, MAX_DIMENSIONS, Stored, is_in, too_many_dimensions, wrong_type};
use crate::pickle::{Format, Id, MAX_DEPTH, MAX_OPCODES, Pickle, Value};

/// Pickles of `torch.save` in protocol 2, its default, to 5. Any function may be named, because none is called.
const FORMAT: Format = Format {
    name: "a state dict",
    opcodes: b"(NKMJGXCB])}taesucRbQqrhj\x81\x85\x86\x87\x88\x89\x8a\x8c\x8d\x8e\x93\x94\x95",
    allows: |_, _| true,
};

/// Keys under which training scripts save the weights.
const NESTED: [&str; 3] = ["state_dict", "model", "model_state_dict"];

/// Maximum size of all tensors together, as a multiple of the file's size. Tensors may share storage.
const MAX_SHARING: usize = 4;

/// Maximum length in bytes of the key of a storage, which is a number.
const MAX_KEY: usize = 64;
/// Maximum length in bytes of a key within the names of nested tensors.
const MAX_NAME: usize = 256;
/// Maximum number of dictionaries of a file that are searched for tensors. A dictionary can have many paths.
const MAX_DICTIONARIES: usize = 1000;
/// Maximum depth of a dictionary that is searched for tensors.
const MAX_NESTING: usize = 8;

/// Magic bytes of the files of `torch.save` since version 1.6, a zip archive.
pub(super) const ARCHIVE: &[u8] = b"PK\x03\x04";
/// Pickled number at the start of the files of `torch.save` before version 1.6.
const LEGACY: &[u8] = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19";

/// Returns the reason why a pickle outside an archive is refused; `None` for files that are no pickles.
pub(super) fn bare_pickle(bytes: &[u8]) -> Option<&'static str> {
    // Protocol 4 begins with the length of a frame.
    let start = bytes.get(..bytes.len().min(32)).filter(|start| matches!(start, [0x80, 2..=5, ..]))?;
    Some(match start.windows(LEGACY.len()).any(|window| window == LEGACY) {
        true => "is in the format of PyTorch before 1.6; load it and `torch.save` it with a later version",
        false => {
            "is a Python pickle that `torch.save` did not write; load it and `torch.save` its state dict"
        }
    })
}

/// Reads the tensors of a state dict, which is at the top level or under [`NESTED`] keys. With a `prefix`, reads the
/// tensors that [`part`] selects instead. An error message does not contain the file's name, which the caller adds.
pub(super) fn read(bytes: &[u8], prefix: Option<&str>) -> Result<Contents, String> {
    let mut archive = Archive::open(bytes)?;
    let pickle = archive.entry("data.pkl")?;
    let pickle = Pickle::read(&pickle, &FORMAT).map_err(|e| format!("its pickle cannot be read: {e}"))?;
    let dictionaries = Dictionary::all(&pickle)?;
    let mut contents = Contents { others: parts(&dictionaries), ..Contents::default() };
    let usual = state_dict(&dictionaries);
    let selected = match prefix {
        Some(prefix) => {
            let usual = usual.ok();
            let selected = part(&pickle, &dictionaries, usual, prefix);
            if selected.is_empty() {
                let names = usual.into_iter().flat_map(|dictionary| dictionary.entries.keys());
                let starts = names.filter_map(|name| Some(name.split_once('.')?.0.to_string()));
                contents.others.extend(starts);
            }
            selected
        }
        None => {
            let dictionary = usual.map_err(|reason| reason + &contents.hint())?;
            dictionary.entries.iter().map(|(&name, &id)| (name.to_string(), id)).collect()
        }
    };
    let mut storages: BTreeMap<&str, Vec<(String, View)>> = BTreeMap::new();
    let mut allowed = bytes.len().saturating_mul(MAX_SHARING);
    for (name, value) in selected {
        match View::of(&pickle, value) {
            None => {}
            Some(Item::Unusable(reason)) => drop(contents.tensors.insert(name, Stored::Unusable(reason))),
            Some(Item::Tensor(storage, view)) => {
                let bytes = view.bytes().and_then(|bytes| allowed.checked_sub(bytes));
                allowed = bytes.ok_or_else(|| {
                    let shape = &view.shape;
                    format!("the tensors up to `{name}` {shape:?} are over {MAX_SHARING} times larger than the file")
                })?;
                storages.entry(storage).or_default().push((name, view));
            }
        }
    }
    for (storage, views) in storages {
        let numbers = archive.entry(&format!("data/{storage}"))?;
        for (name, view) in views {
            let tensor = view.tensor(&numbers).ok_or_else(|| {
                format!("`{name}` of shape {:?} exceeds its storage of {} bytes", view.shape, numbers.len())
            })?;
            contents.tensors.insert(name, Stored::Values(tensor));
        }
    }
    Ok(contents)
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
            return Err(match zip.file_names().flatten().any(|name| name.ends_with(".npy")) {
                true => "is an archive of NumPy (.npz), as Google's ViT weights are, which is not supported; the hub \
                     has the same weights as `timm/vit_*_augreg_*`, for instance \
                     `hf:timm/vit_base_patch16_224.augreg_in21k`"
                    .into(),
                false => "is a zip archive without `data.pkl`, which `torch.save` writes".into(),
            });
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

/// Dictionary of a pickle, without the entries whose keys are not text.
struct Dictionary<'a> {
    /// Keys that lead to the dictionary, joined with dots; empty at the top level.
    path: String,
    entries: BTreeMap<&'a str, Id>,
    has_tensors: bool,
}

impl<'a> Dictionary<'a> {
    /// Returns the dictionary at the top level and those in it, from the top down.
    fn all(pickle: &Pickle<'a>) -> Result<Vec<Self>, String> {
        match pickle.value(pickle.root) {
            Value::Dict(_) => {}
            Value::Call(..) => {
                return Err("contains a Python object, which only its own code can load; save its \
                     `state_dict()` instead"
                    .into());
            }
            _ => {
                return Err(
                    "contains no dictionary of tensors, which `torch.save(model.state_dict())` writes".into(),
                );
            }
        }
        let mut all: Vec<Self> = Vec::new();
        let mut queue = VecDeque::from([(String::new(), pickle.root, 0)]);
        // All dictionaries of a pickle have fewer entries than this. Only repeated visits exceed the number.
        let mut left = MAX_OPCODES;
        while let Some((path, id, depth)) = queue.pop_front() {
            let Value::Dict(entries) = pickle.value(id) else { continue };
            let Some(rest) = left.checked_sub(entries.len()) else { break };
            left = rest;
            // Compare each distinct key once: a pickle can repeat a long key many times.
            let entries: BTreeMap<Id, Id> = entries.iter().copied().collect();
            let entries: BTreeMap<&str, Id> =
                entries.into_iter().filter_map(|(key, value)| Some((pickle.text(key)?, value))).collect();
            for (key, &value) in &entries {
                let room = all.len() + queue.len() < MAX_DICTIONARIES && depth < MAX_NESTING;
                if room && key.len() <= MAX_NAME && matches!(pickle.value(value), Value::Dict(_)) {
                    queue.push_back((joined(&path, key), value, depth + 1));
                }
            }
            let has_tensors = entries.values().any(|&value| View::of(pickle, value).is_some());
            all.push(Self { path, entries, has_tensors });
        }
        Ok(all)
    }
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { key.into() } else { format!("{path}.{key}") }
}

/// Returns the paths of the dictionaries with tensors, except the one that is read without a prefix.
fn parts(dictionaries: &[Dictionary<'_>]) -> BTreeSet<String> {
    let usual = state_dict(dictionaries).map(|dictionary| dictionary.path.as_str()).unwrap_or_default();
    let full = dictionaries.iter().filter(|dictionary| dictionary.has_tensors && dictionary.path != usual);
    full.filter(|dictionary| !dictionary.path.is_empty()).map(|dictionary| dictionary.path.clone()).collect()
}

/// Returns the dictionary that is read without a prefix: that at the top level if it contains tensors, otherwise the
/// one under [`NESTED`].
fn state_dict<'d, 'a>(dictionaries: &'d [Dictionary<'a>]) -> Result<&'d Dictionary<'a>, String> {
    let at = |path: &str| dictionaries.iter().find(|dictionary| dictionary.path == path);
    let mut path = String::new();
    while let Some(dictionary) = at(&path) {
        if dictionary.has_tensors {
            return Ok(dictionary);
        }
        let mut nested = NESTED.iter().map(|key| joined(&path, key));
        let Some(next) = nested.find(|path| at(path).is_some()) else { break };
        path = next;
    }
    let keys = at(&path).into_iter().flat_map(|dictionary| dictionary.entries.keys());
    let keys: Vec<_> = keys.map(|key| format!("`{key}`")).take(8).collect();
    Err(format!(
        "contains no tensors at the top level or under `{}`; its keys are: {}",
        NESTED.join("`, `"),
        if keys.is_empty() { "none".into() } else { keys.join(", ") },
    ))
}

/// Returns the tensors whose full names begin with `prefix`. A full name consists of the keys of all dictionaries that
/// contain the tensor, and its own key, joined with dots. If no tensor matches, the names within the dictionary `usual`
/// are compared instead.
fn part<'a>(
    pickle: &Pickle<'a>,
    dictionaries: &[Dictionary<'a>],
    usual: Option<&Dictionary<'a>>,
    prefix: &str,
) -> BTreeMap<String, Id> {
    let all = dictionaries.iter().flat_map(|dictionary| {
        let short = dictionary.entries.iter().filter(|(key, _)| key.len() <= MAX_NAME);
        short.map(|(key, &id)| (joined(&dictionary.path, key), id))
    });
    let is_tensor = |(_, id): &(String, Id)| View::of(pickle, *id).is_some();
    let selected: BTreeMap<String, Id> =
        all.filter(|(name, _)| is_in(name, prefix)).filter(is_tensor).collect();
    if !selected.is_empty() {
        return selected;
    }
    let usual = usual.into_iter().flat_map(|dictionary| &dictionary.entries);
    usual.filter(|(name, _)| is_in(name, prefix)).map(|(name, &id)| (name.to_string(), id)).collect()
}

/// Tensor in a pickle.
enum Item<'a> {
    /// Storage and location of the values.
    Tensor(&'a str, View),
    /// Tensor that cannot be read, with the reason.
    Unusable(String),
}

/// Location of a tensor's values in a storage. Offset and strides count elements.
struct View {
    dtype: DType,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl View {
    /// Returns the tensor that a value of the pickle stands for. `None` for other objects, and for empty tensors.
    fn of<'a>(pickle: &Pickle<'a>, value: Id) -> Option<Item<'a>> {
        let (mut function, mut arguments, _) = pickle.call(value)?;
        for _ in 0..MAX_DEPTH {
            match (function, arguments) {
                (("torch._utils", "_rebuild_tensor_v2"), &[storage, offset, shape, strides, ..]) => {
                    return Self::plain(pickle, storage, [offset, shape, strides]);
                }
                // Arguments of a parameter: tensor, `requires_grad`, hooks.
                (("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state"), &[tensor, ..]) => {
                    (function, arguments, _) = pickle.call(tensor)?;
                }
                // Arguments of a tensor subclass: constructor, class, arguments of the constructor.
                (("torch._tensor", "_rebuild_from_type_v2"), &[inner, _, given, ..]) => {
                    (function, arguments) = (pickle.global(inner)?, pickle.items(given)?);
                }
                // Types without a storage of their own, such as float8. The seventh argument is the type.
                (("torch._utils", "_rebuild_tensor_v3"), &[_, _, _, _, _, _, dtype, ..]) => {
                    return Some(Item::Unusable(wrong_type(pickle.global(dtype)?.1)));
                }
                // Other tensors, such as quantised ones, whose first argument is a storage.
                (("torch._utils", kind), &[storage, ..]) if kind.starts_with("_rebuild_") => {
                    return Some(Item::Unusable(match Self::storage(pickle, storage) {
                        Some((class, _)) => wrong_type(&type_of(class)),
                        None => format!("is stored by `{kind}`, not as plain values"),
                    }));
                }
                _ => return None,
            }
        }
        None
    }

    /// Returns class and key of a storage.
    fn storage<'a>(pickle: &Pickle<'a>, storage: Id) -> Option<(&'a str, Id)> {
        let &Value::Persistent(storage) = pickle.value(storage) else { return None };
        let &[_, class, key, ..] = pickle.items(storage)? else { return None };
        let ("torch", class) = pickle.global(class)? else { return None };
        Some((class, key))
    }

    /// Returns a tensor of plain values. `place` is offset, shape and strides.
    fn plain<'a>(pickle: &Pickle<'a>, storage: Id, place: [Id; 3]) -> Option<Item<'a>> {
        let (class, key) = Self::storage(pickle, storage)?;
        let dtype = match class {
            "FloatStorage" => DType::F32,
            "DoubleStorage" => DType::F64,
            "HalfStorage" => DType::F16,
            "BFloat16Storage" => DType::BF16,
            other => return Some(Item::Unusable(wrong_type(&type_of(other)))),
        };
        let [offset, shape, strides] = place;
        let dimensions = pickle.items(shape)?.len();
        if dimensions > MAX_DIMENSIONS {
            return Some(Item::Unusable(too_many_dimensions(dimensions)));
        }
        let whole = |id: Id| usize::try_from(pickle.int(id)?).ok();
        let wholes = |id: Id| -> Option<Vec<usize>> {
            let items = pickle.items(id).filter(|items| items.len() == dimensions)?;
            items.iter().map(|&id| whole(id)).collect()
        };
        let view = Self { dtype, offset: whole(offset)?, shape: wholes(shape)?, strides: wholes(strides)? };
        let key = pickle.text(key).filter(|key| !view.shape.contains(&0) && key.len() <= MAX_KEY)?;
        Some(Item::Tensor(key, view))
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

/// Returns the type of the values in a storage of this class as PyTorch writes it: `int8` for `CharStorage`.
fn type_of(class: &str) -> String {
    let name = class.trim_end_matches("Storage");
    let known = [
        ("Bool", "bool"),
        ("Byte", "uint8"),
        ("Char", "int8"),
        ("Short", "int16"),
        ("Int", "int32"),
        ("Long", "int64"),
        ("ComplexFloat", "complex64"),
        ("ComplexDouble", "complex128"),
    ];
    known.iter().find(|(theirs, _)| *theirs == name).map_or(name.to_lowercase(), |(_, ours)| ours.to_string())
}
