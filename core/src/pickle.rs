//! Reader of Python pickles that never runs code: for state dicts of PyTorch and arrays of NumPy.
//!
//! A pickle is a program for a stack machine that builds objects and may call any function on the way. [`Pickle::read`]
//! interprets the program without calling anything: functions, calls and persistent ids become inert [`Value`]s, which
//! the caller matches on. The crate `serde-pickle` is unsuitable: it rejects the persistent ids by which every PyTorch
//! file refers to its tensor data, and it converts nested objects by recursion.
//!
//! Files may be hostile. Values are stored in one flat list and refer to each other by [`Id`], so that the memo copies
//! nothing and neither reading nor dropping recurses. Memory is proportional to the file's size: lengths are checked
//! before use, text is borrowed. Opcodes and functions that the [`Format`] does not list are refused, and so are
//! pickles that exceed [`MAX_BYTES`], [`MAX_OPCODES`] or [`MAX_DEPTH`].

use std::collections::HashMap;

/// Maximum size of a pickle in bytes. CIFAR-100's training file has 155 MB.
pub const MAX_BYTES: usize = 1 << 30;

/// Maximum number of opcodes: fifteen times that of CIFAR-100's training file. Each opcode adds at most one value, one
/// item on the stack, one mark or one entry of the memo.
pub const MAX_OPCODES: usize = 1 << 22;

/// Maximum depth of nested values. A tensor within three dictionaries has depth 9.
pub const MAX_DEPTH: u8 = 64;

/// Opcodes and functions that a caller accepts.
pub struct Format {
    /// Kind of file, for messages: `a state dict`.
    pub name: &'static str,
    /// Opcodes that such files need. [`Pickle::read`] must support all of them.
    pub opcodes: &'static [u8],
    /// Returns whether such files may name the function or class with this module and name.
    pub allows: fn(&str, &str) -> bool,
}

/// Reason why a pickle is refused, with the position after the offending opcode.
#[derive(Debug, thiserror::Error)]
#[error("byte {0}: {1}")]
pub struct PickleError(usize, String);

/// Module and name of a function or class.
pub type Name<'a> = (&'a str, &'a str);

/// Index of a value in its pickle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id(u32);

/// Object that a pickle builds. Lists and dictionaries may contain themselves, so a caller must bound its traversal.
#[derive(Debug)]
pub enum Value<'a> {
    /// `None`.
    None,
    /// Integer. As in Python, booleans are 0 and 1.
    Int(i64),
    /// Floating-point number.
    Float(f64),
    /// Text in UTF-8, bytes, or a string of Python 2.
    Bytes(&'a [u8]),
    /// List.
    List(Vec<Id>),
    /// Tuple.
    Tuple(Vec<Id>),
    /// Keys and values of a dictionary in the order in which they were set. A later entry replaces an earlier one.
    Dict(Vec<(Id, Id)>),
    /// Function or class.
    Global(Name<'a>),
    /// Call that Python would make: function, tuple of arguments, state given to the result.
    Call(Id, Id, Option<Id>),
    /// Reference to an object outside the pickle.
    Persistent(Id),
}

/// Decoded pickle.
pub struct Pickle<'a> {
    /// Each value with its depth: one more than the depth of its deepest part at the time that part was added.
    values: Vec<(Value<'a>, u8)>,
    /// The top-level object.
    pub root: Id,
}

impl<'a> Pickle<'a> {
    /// Reads a pickle of protocol 2 to 5.
    ///
    /// # Errors
    /// Incomplete or malformed pickles, opcodes or functions that `format` does not list, exceeded limits.
    pub fn read(bytes: &'a [u8], format: &Format) -> Result<Self, PickleError> {
        let (values, stack, marks, memo) = Default::default();
        let mut machine = Machine { format, bytes, at: 0, values, stack, marks, memo };
        match machine.run() {
            Ok(root) => Ok(Self { values: machine.values, root }),
            Err(reason) => Err(PickleError(machine.at, reason)),
        }
    }

    /// Returns the value at `id`, which must belong to this pickle.
    pub fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id.0 as usize].0
    }

    /// Returns the integer at `id`.
    pub fn int(&self, id: Id) -> Option<i64> {
        if let Value::Int(number) = *self.value(id) { Some(number) } else { None }
    }

    /// Returns the text at `id`.
    pub fn text(&self, id: Id) -> Option<&'a str> {
        if let Value::Bytes(bytes) = *self.value(id) { std::str::from_utf8(bytes).ok() } else { None }
    }

    /// Returns the items of the list or tuple at `id`.
    pub fn items(&self, id: Id) -> Option<&[Id]> {
        if let Value::List(items) | Value::Tuple(items) = self.value(id) { Some(items) } else { None }
    }

    /// Returns the function or class at `id`.
    pub fn global(&self, id: Id) -> Option<Name<'a>> {
        if let Value::Global(name) = *self.value(id) { Some(name) } else { None }
    }

    /// Returns function, arguments and state of the call at `id`.
    pub fn call(&self, id: Id) -> Option<(Name<'a>, &[Id], Option<Id>)> {
        let &Value::Call(function, arguments, state) = self.value(id) else { return None };
        Some((self.global(function)?, self.items(arguments)?, state))
    }
}

/// Stack machine that interprets a pickle.
struct Machine<'a, 'f> {
    format: &'f Format,
    bytes: &'a [u8],
    at: usize,
    values: Vec<(Value<'a>, u8)>,
    stack: Vec<Id>,
    /// Heights of the stack at open marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a, '_> {
    fn run(&mut self) -> Result<Id, String> {
        if self.bytes.len() > MAX_BYTES {
            return Err(format!("a pickle of {} bytes; expected at most {MAX_BYTES}", self.bytes.len()));
        }
        match self.take(2)? {
            [0x80, 2..=5] => {}
            [0x80, protocol] => return Err(format!("pickle protocol {protocol}; expected 2 to 5")),
            _ => return Err("not a pickle of protocol 2 to 5".into()),
        }
        let Format { name, opcodes, .. } = self.format;
        for _ in 0..MAX_OPCODES {
            match self.number(1)? as u8 {
                b'.' => return self.top(),
                opcode if opcodes.contains(&opcode) => self.step(opcode)?,
                opcode => return Err(format!("opcode {opcode:#04x}, which {name} does not need")),
            }
        }
        Err(format!("more than {MAX_OPCODES} opcodes"))
    }

    /// Runs one opcode. Python's `pickletools` describes them.
    fn step(&mut self, opcode: u8) -> Result<(), String> {
        // A number, an index of the memo, or the length of what follows.
        let argument = self.number(match opcode {
            b'K' | b'q' | b'h' | b'U' | b'C' | 0x8c | 0x8a => 1,
            b'M' => 2,
            b'J' | b'r' | b'j' | b'T' | b'B' | b'X' => 4,
            b'G' | 0x8d | 0x8e | 0x96 | 0x95 => 8,
            _ => 0,
        })?;
        let operands = match opcode {
            0x85 | b'a' | b'b' | b'Q' => self.pop(1)?,
            0x86 | b's' | b'R' | 0x81 | 0x93 => self.pop(2)?,
            0x87 => self.pop(3)?,
            b't' | b'e' | b'u' => self.stack.split_off(self.marks.pop().ok_or("no mark on the stack")?),
            _ => Vec::new(),
        };
        let depth = 1 + operands.iter().map(|id| self.values[id.0 as usize].1).max().unwrap_or(0);
        if depth > MAX_DEPTH {
            return Err(format!("nests objects more than {MAX_DEPTH} deep"));
        }
        let value = match (opcode, operands.as_slice()) {
            (b'N', _) => Value::None,
            (0x88 | 0x89, _) => Value::Int((opcode == 0x88).into()),
            (b'K' | b'M', _) => Value::Int(argument as i64),
            (b'J', _) => Value::Int((argument as u32 as i32).into()),
            (0x8a, _) if argument > 8 => return Err(format!("a number of {argument} bytes")),
            (0x8a, _) => {
                let unused = (64 - 8 * argument).min(63);
                Value::Int((self.number(argument)? << unused) as i64 >> unused)
            }
            (b'G', _) => Value::Float(f64::from_bits(argument.swap_bytes())),
            (b'U' | b'C' | 0x8c | b'T' | b'B' | b'X' | 0x8d | 0x8e | 0x96, _) => {
                Value::Bytes(self.take(argument)?)
            }
            (b']', _) => Value::List(operands),
            (b'}', _) => Value::Dict(Vec::new()),
            (b')' | b't' | 0x85..=0x87, _) => Value::Tuple(operands),
            (b'c', _) => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?
            }
            (0x93, &[module, name]) => match [module, name].map(|id| &self.values[id.0 as usize].0) {
                [&Value::Bytes(module), &Value::Bytes(name)] => self.global(module, name)?,
                _ => return Err("a name that is not text".into()),
            },
            (b'R' | 0x81, &[function, arguments]) => match self.values[function.0 as usize].0 {
                Value::Global(("collections", "OrderedDict" | "defaultdict")) => Value::Dict(Vec::new()),
                Value::Global(..) | Value::Call(..) => Value::Call(function, arguments, None),
                _ => return Err("calls an object that is not a function".into()),
            },
            (b'Q', &[id]) => Value::Persistent(id),
            (b'a' | b'e' | b's' | b'u' | b'b', parts) => return self.add_to_top(opcode, parts, depth),
            (b'(', _) => {
                self.marks.push(self.stack.len());
                return Ok(());
            }
            (b'q' | b'r' | 0x94, _) => {
                let key = if opcode == 0x94 { self.memo.len() as u64 } else { argument };
                let top = self.top()?;
                self.memo.insert(key, top);
                return Ok(());
            }
            (b'h' | b'j', _) => {
                let id = self.memo.get(&argument);
                self.stack
                    .push(*id.ok_or_else(|| format!("reads memo entry {argument}, which does not exist"))?);
                return Ok(());
            }
            // The length of a frame only helps readers of streams.
            (0x95, _) => return Ok(()),
            _ => return Err(format!("opcode {opcode:#04x}, which is not supported")),
        };
        // There are at most `MAX_OPCODES` values, so the index fits into 32 bits.
        self.stack.push(Id(self.values.len() as u32));
        self.values.push((value, depth));
        Ok(())
    }

    /// Adds items, entries or a state to the object on top of the stack.
    fn add_to_top(&mut self, opcode: u8, parts: &[Id], depth: u8) -> Result<(), String> {
        let top = self.top()?;
        let (object, own) = &mut self.values[top.0 as usize];
        *own = depth.max(*own);
        match (opcode, object) {
            (b'a' | b'e', Value::List(items)) => items.extend(parts),
            (b's' | b'u', Value::Dict(entries)) if parts.len().is_multiple_of(2) => {
                entries.extend(parts.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            (b'b', Value::Call(_, _, state)) => *state = parts.first().copied(),
            // A state of a dictionary sets attributes, which are not entries.
            (b'b', Value::Dict(_)) => {}
            _ => return Err(format!("opcode {opcode:#04x} on an object that cannot hold its operands")),
        }
        Ok(())
    }

    fn global(&self, module: &'a [u8], name: &'a [u8]) -> Result<Value<'a>, String> {
        if let (Ok(module), Ok(name)) = (std::str::from_utf8(module), std::str::from_utf8(name))
            && (self.format.allows)(module, name)
        {
            return Ok(Value::Global((module, name)));
        }
        let [module, name] = [module, name].map(|all| String::from_utf8_lossy(&all[..all.len().min(60)]));
        Err(format!("names `{module}.{name}`, which {} does not need: refused", self.format.name))
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| format!("{count} more bytes expected: truncated?"))?;
        self.at += taken.len();
        Ok(taken)
    }

    /// Reads a little-endian number of at most 8 bytes.
    fn number(&mut self, size: u64) -> Result<u64, String> {
        Ok(self.take(size)?.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    /// Reads the rest of a line, without its end.
    fn line(&mut self) -> Result<&'a [u8], String> {
        let length = self.bytes[self.at..].iter().position(|&byte| byte == b'\n');
        let length = length.ok_or("a name without an end: truncated?")?;
        Ok(&self.take(length as u64 + 1)?[..length])
    }

    /// Returns the objects on the stack above the last mark.
    fn frame(&self) -> &[Id] {
        &self.stack[self.marks.last().copied().unwrap_or(0)..]
    }

    fn top(&self) -> Result<Id, String> {
        self.frame().last().copied().ok_or_else(|| "the stack is empty".into())
    }

    fn pop(&mut self, count: usize) -> Result<Vec<Id>, String> {
        match self.frame().len().checked_sub(count) {
            Some(_) => Ok(self.stack.split_off(self.stack.len() - count)),
            None => Err("the stack is empty".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Format = Format {
        name: "a test",
        opcodes: b"(.NKMJGUTCBX])}taesucRbQqrhj\x81\x85\x86\x87\x88\x89\x8a\x8c\x8d\x8e\x93\x94\x95\x96",
        allows: |_, _| true,
    };

    fn read(pickle: &[u8]) -> Result<Pickle<'_>, PickleError> {
        Pickle::read(pickle, &ALL)
    }

    fn assert_refused(pickle: &[u8], word: &str) {
        let message = read(pickle).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains(word), "{message:?} does not contain {word:?}");
    }

    #[test]
    fn nested_dictionaries_are_read() {
        // {"a": (1, 2.0), "b": ["a"]} by Python's protocol 2.
        let bytes = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01G@\x00\x00\x00\x00\x00\x00\x00\x86q\x02\
            X\x01\x00\x00\x00bq\x03]q\x04h\x01au.";
        let pickle = read(bytes).unwrap();
        let Value::Dict(entries) = pickle.value(pickle.root) else { panic!("no dictionary") };
        let &[(a, pair), (b, list)] = entries.as_slice() else { panic!("{entries:?}") };
        assert_eq!([pickle.text(a), pickle.text(b)], [Some("a"), Some("b")]);
        assert_eq!(pickle.items(list), Some([a].as_slice()));
        let &[one, two] = pickle.items(pair).unwrap() else { panic!("no pair") };
        assert_eq!(pickle.int(one), Some(1));
        assert!(matches!(pickle.value(two), Value::Float(2.0)));
        (0..bytes.len()).for_each(|end| assert_refused(&bytes[..end], "truncated"));
    }

    #[test]
    fn integers_of_all_sizes_are_read() {
        let pickle = read(
            b"\x80\x02](K\xffM\x34\x12J\xfe\xff\xff\xff\x8a\x00\x8a\x01\xff\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x88e.",
        )
        .unwrap();
        let numbers: Option<Vec<_>> =
            pickle.items(pickle.root).unwrap().iter().map(|&id| pickle.int(id)).collect();
        assert_eq!(numbers.unwrap(), [255, 0x1234, -2, 0, -1, i64::MAX, 1]);
    }

    #[test]
    fn calls_and_persistent_ids_become_values() {
        // m.f(persistent id 7) given the state None, and an ordered dictionary with attributes.
        let pickle =
            read(b"\x80\x02cm\nf\nK\x07Q\x85RNbccollections\nOrderedDict\n)RK\x01K\x02sNb\x86.").unwrap();
        let &[call, dict] = pickle.items(pickle.root).unwrap() else { panic!("no pair") };
        let (function, arguments, state) = pickle.call(call).unwrap();
        assert!(function == ("m", "f") && matches!(pickle.value(state.unwrap()), Value::None));
        let Value::Persistent(seven) = *pickle.value(arguments[0]) else { panic!("no persistent id") };
        assert_eq!(pickle.int(seven), Some(7));
        let Value::Dict(entries) = pickle.value(dict) else { panic!("no dictionary") };
        assert_eq!(entries.len(), 1);
    }

    #[test]
    fn pickles_that_would_exhaust_memory_or_the_stack_are_refused() {
        // Text of 4 GB in six bytes.
        assert_refused(b"\x80\x02X\xff\xff\xff\xffa.", "truncated");
        // A tuple in a tuple in a tuple ...
        assert_refused(&[b"\x80\x02K\x01".as_slice(), &b"\x85".repeat(100_000), b"."].concat(), "64 deep");
        // Lists that are appended to each other.
        let lists = [b"]".repeat(100_000), b"a".repeat(99_999)].concat();
        assert_refused(&[b"\x80\x02".as_slice(), &lists, b"."].concat(), "64 deep");
        // A number of 255 bytes, which would be shifted by 2040 bits.
        assert_refused(&[b"\x80\x02\x8a\xff".as_slice(), &[1; 255], b"."].concat(), "255 bytes");
        for endless in ["N", "(", "h\0", "q\0", "]a"] {
            let opcodes = endless.repeat(MAX_OPCODES + 1);
            assert_refused(
                &[b"\x80\x02]q\0".as_slice(), opcodes.as_bytes()].concat(),
                "more than 4194304 opcodes",
            );
        }
    }

    #[test]
    fn repeated_references_take_no_memory() {
        // A pair of the previous pair, forty times: 2^40 objects if references were copied.
        let doubled = b"h\x00h\x00\x86q\x00".repeat(40);
        let bytes = [b"\x80\x02K\x01q\x00", doubled.as_slice(), b"."].concat();
        assert_eq!(read(&bytes).unwrap().values.len(), 41);
    }

    #[test]
    fn deep_nesting_through_the_memo_is_dropped_without_recursion() {
        // Each list is appended to the previous one while still empty, so that the recorded depth stays small.
        let lists = 200_000u32;
        let mut bytes = b"\x80\x02".to_vec();
        for list in 0..lists {
            bytes.extend([b"]r".as_slice(), &list.to_le_bytes()].concat());
        }
        for list in 1..lists {
            let key = |list: u32| [b"j".as_slice(), &list.to_le_bytes()].concat();
            bytes.extend([key(list - 1), key(list), b"a".to_vec()].concat());
        }
        bytes.push(b'.');
        drop(read(&bytes).unwrap());
        // A list that contains itself.
        let pickle = read(b"\x80\x02]q\0h\0a.").unwrap();
        assert_eq!(pickle.items(pickle.root), Some([pickle.root].as_slice()));
    }

    #[test]
    fn malformed_pickles_and_unlisted_opcodes_are_refused() {
        assert_refused(b"\x80\x02\x86.", "stack is empty");
        assert_refused(b"\x80\x02N(\x85.", "stack is empty");
        assert_refused(b"\x80\x02NNa.", "cannot hold");
        assert_refused(b"\x80\x02}(Nu.", "cannot hold");
        assert_refused(b"\x80\x02NNb.", "cannot hold");
        assert_refused(b"\x80\x02N)R.", "not a function");
        assert_refused(b"\x80\x02NN\x93.", "not text");
        assert_refused(b"\x80\x02c\xff\nf\n.", "refused");
        assert_refused(b"\x80\x02N0.", "byte 4: opcode 0x30, which a test does not need");
        let few = Format { opcodes: b"N", ..ALL };
        let message = Pickle::read(b"\x80\x04\x95\0\0\0\0\0\0\0\0N.", &few).err().map(|e| e.to_string());
        assert_eq!(message.unwrap(), "byte 3: opcode 0x95, which a test does not need");
    }

    #[test]
    fn random_programs_never_panic() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = |bound: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as usize % bound
        };
        let mut complete = 0;
        for _ in 0..100_000 {
            let mut bytes = b"\x80\x02".to_vec();
            for _ in 0..random(60) {
                bytes.push(match random(4) {
                    0 => random(4) as u8,
                    _ => ALL.opcodes[random(ALL.opcodes.len())],
                });
            }
            bytes.push(b'.');
            if let Ok(pickle) = read(&bytes) {
                complete += 1;
                let (_, _, _) = (pickle.call(pickle.root), pickle.text(pickle.root), pickle.int(pickle.root));
            }
        }
        assert!(complete > 100, "{complete}");
    }
}
