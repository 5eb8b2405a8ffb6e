//! Pickled data, read as data: Python's pickle is a program that builds objects, and may call any function on the way.
//! Here nothing is called. The program is read into a tree in which a call is an inert node, and of all names only those
//! that NumPy's arrays are pickled with may occur; a file with any other is refused.
//!
//! Read are the opcodes of protocols 2 to 5 that dictionaries, lists, tuples, strings, numbers and arrays need (Python's
//! `pickletools` describes them). No length in the file is trusted, and nothing recurses.

use std::{borrow::Cow, collections::HashMap, ops::Range};

/// A reason why a file cannot be read, with the place.
pub(crate) type Result<T> = std::result::Result<T, String>;

/// Nodes that a file may make: twenty times those of CIFAR-100's training file.
const MAX_NODES: usize = 1 << 22;

/// A pickled object and all that it consists of.
pub(crate) struct Pickle<'a> {
    bytes: &'a [u8],
    nodes: Vec<Node>,
    root: Id,
}

/// Position in [`Pickle::nodes`].
pub(crate) type Id = usize;

enum Node {
    None,
    Int(i64),
    /// Bytes of the file: a string of Python 2, bytes, or text in UTF-8.
    Bytes(Range<usize>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Name(Name),
    /// A function and its arguments, and the state that was given to its result.
    Call {
        name: Name,
        arguments: Id,
        state: Option<Id>,
    },
}

/// What may be named in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    /// `numpy.core.multiarray._reconstruct`: an array whose content is its state.
    Array,
    /// `numpy.core.numeric._frombuffer`: an array of bytes (protocol 5).
    FromBuffer,
    /// `numpy.ndarray`, an argument of the former.
    ArrayType,
    /// `numpy.dtype`.
    Dtype,
    /// `_codecs.encode`: how Python 3 writes bytes in protocol 2, as Latin-1 text.
    Encode,
}

impl Name {
    fn find(module: &[u8], name: &[u8]) -> Option<Self> {
        match (module, name) {
            (b"numpy.core.multiarray" | b"numpy._core.multiarray", b"_reconstruct") => Some(Self::Array),
            (b"numpy.core.numeric" | b"numpy._core.numeric", b"_frombuffer") => Some(Self::FromBuffer),
            (b"numpy", b"ndarray") => Some(Self::ArrayType),
            (b"numpy", b"dtype") => Some(Self::Dtype),
            (b"_codecs", b"encode") => Some(Self::Encode),
            _ => None,
        }
    }
}

/// An array of unsigned bytes.
pub(crate) struct Array<'a> {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Cow<'a, [u8]>,
}

impl<'a> Pickle<'a> {
    /// Reads a pickle.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut machine =
            Machine { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), memo: HashMap::new() };
        let root = machine.run().map_err(|reason| format!("byte {}: {reason}", machine.at))?;
        Ok(Self { bytes, nodes: machine.nodes, root })
    }

    /// The value under `key` of the dictionary that the pickle is; keys may be text or bytes.
    pub(crate) fn entry(&self, key: &str) -> Result<Id> {
        let Node::Dict(entries) = self.node(self.root)? else {
            return Err("is not a pickled dictionary".into());
        };
        // As in Python, the last of several entries counts.
        let found = entries
            .iter()
            .rev()
            .find(|&&(id, _)| self.bytes_of(id).is_ok_and(|name| *name == *key.as_bytes()));
        found.map(|&(_, value)| value).ok_or_else(|| format!("has no entry `{key}`"))
    }

    /// The whole numbers of a list.
    pub(crate) fn ints(&self, list: Id) -> Result<Vec<i64>> {
        let number = |&id: &Id| match self.node(id)? {
            Node::Int(value) => Ok(*value),
            _ => Err("an item is not a whole number".into()),
        };
        self.items(list)?.iter().map(number).collect()
    }

    /// The strings of a list.
    pub(crate) fn strings(&self, list: Id) -> Result<Vec<String>> {
        let text = |&id: &Id| String::from_utf8(self.bytes_of(id)?.into_owned()).map_err(|e| e.to_string());
        self.items(list)?.iter().map(text).collect()
    }

    /// An array of unsigned bytes in row-major order.
    pub(crate) fn array(&self, id: Id) -> Result<Array<'a>> {
        let Node::Call { name, arguments, state } = self.node(id)? else {
            return Err("is not an array".into());
        };
        let parts = match (name, state) {
            (Name::Array, Some(state)) => self.items(*state)?,
            (Name::FromBuffer, None) => self.items(*arguments)?,
            _ => return Err("is not an array".into()),
        };
        let (shape, dtype, values) = match (name, parts) {
            (Name::Array, &[_version, shape, dtype, order, values]) => match self.node(order)? {
                Node::Int(0) => (shape, dtype, values),
                _ => return Err("an array in column-major order; expected row-major".into()),
            },
            (Name::FromBuffer, &[values, dtype, shape, order]) if *self.bytes_of(order)? == *b"C" => {
                (shape, dtype, values)
            }
            _ => return Err("an array of an unknown form".into()),
        };
        let Node::Call { name: Name::Dtype, arguments, .. } = self.node(dtype)? else {
            return Err("an array without a type".into());
        };
        let dtype = self.items(*arguments)?.first().map(|&id| self.bytes_of(id)).transpose()?;
        if dtype.as_deref() != Some(b"u1".as_slice()) {
            return Err("an array of other values than unsigned bytes".into());
        }
        let size =
            |value| usize::try_from(value).map_err(|_| format!("an array with {value} rows or columns"));
        let shape: Vec<usize> = self.ints(shape)?.into_iter().map(size).collect::<Result<_>>()?;
        let values = self.bytes_of(values)?;
        match shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size)) {
            Some(count) if count == values.len() => Ok(Array { shape, values }),
            _ => Err(format!("an array of shape {shape:?} with {} values", values.len())),
        }
    }

    fn node(&self, id: Id) -> Result<&Node> {
        self.nodes.get(id).ok_or_else(|| "refers to nothing".into())
    }

    fn items(&self, id: Id) -> Result<&[Id]> {
        match self.node(id)? {
            Node::List(items) | Node::Tuple(items) => Ok(items),
            _ => Err("is not a list".into()),
        }
    }

    fn bytes_of(&self, id: Id) -> Result<Cow<'a, [u8]>> {
        match self.node(id)? {
            Node::Bytes(range) => Ok(Cow::Borrowed(&self.bytes[range.clone()])),
            Node::Call { name: Name::Encode, arguments, .. } => match *self.items(*arguments)? {
                [text, encoding] => match (self.node(text)?, self.node(encoding)?) {
                    (Node::Bytes(text), Node::Bytes(encoding))
                        if self.bytes[encoding.clone()] == *b"latin1" =>
                    {
                        latin1(&self.bytes[text.clone()]).map(Cow::Owned)
                    }
                    _ => Err("bytes in an unknown encoding".into()),
                },
                _ => Err("bytes in an unknown encoding".into()),
            },
            _ => Err("is not a string".into()),
        }
    }
}

/// The bytes that UTF-8 text stands for, one for each character.
fn latin1(text: &[u8]) -> Result<Vec<u8>> {
    let text = std::str::from_utf8(text).map_err(|e| e.to_string())?;
    text.chars().map(|c| u8::try_from(c).map_err(|_| format!("`{c}` is not Latin-1"))).collect()
}

/// Something on the stack.
enum Item {
    Mark,
    Node(Id),
}

/// The pickle machine: a stack and a memo.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Item>,
    memo: HashMap<usize, Id>,
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Id> {
        match (self.byte()?, self.byte()?) {
            (0x80, 2..=5) => {}
            (0x80, protocol) => return Err(format!("pickle protocol {protocol}; expected 2 to 5")),
            _ => return Err("not a pickle of protocol 2 to 5".into()),
        }
        loop {
            match self.byte()? {
                b'.' => return self.pop(),
                // A frame's length, a hint for readers of streams.
                0x95 => self.at = self.take(8)?.end,
                b'(' => self.stack.push(Item::Mark),
                b'N' => self.push(Node::None)?,
                0x88 => self.push(Node::Int(1))?,
                0x89 => self.push(Node::Int(0))?,
                b'K' => self.number(1)?,
                b'M' => self.number(2)?,
                b'J' => {
                    let value = self.length(4)? as u32 as i32;
                    self.push(Node::Int(value.into()))?;
                }
                0x8a => self.long()?,
                b'U' | b'C' | 0x8c => self.bytes_of_length(1)?,
                b'T' | b'B' | b'X' => self.bytes_of_length(4)?,
                0x8e | 0x8d | 0x96 => self.bytes_of_length(8)?,
                b']' => self.push(Node::List(Vec::new()))?,
                b'}' => self.push(Node::Dict(Vec::new()))?,
                b')' => self.push(Node::Tuple(Vec::new()))?,
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Node::Tuple(items))?;
                }
                count @ 0x85..=0x87 => {
                    let start =
                        self.stack.len().checked_sub((count - 0x84).into()).ok_or("the stack is empty")?;
                    let items = nodes_of(self.stack.split_off(start))?;
                    self.push(Node::Tuple(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.append(items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.insert(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.insert(items)?;
                }
                b'q' => self.remember(1)?,
                b'r' => self.remember(4)?,
                0x94 => {
                    let top = self.top()?;
                    self.memo.insert(self.memo.len(), top);
                }
                b'h' => self.recall(1)?,
                b'j' => self.recall(4)?,
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.name(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    match (self.nodes.get(module), self.nodes.get(name)) {
                        (Some(Node::Bytes(module)), Some(Node::Bytes(name))) => {
                            self.name(module.clone(), name.clone())?;
                        }
                        _ => return Err("a name that is not text".into()),
                    }
                }
                b'R' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    match self.nodes.get(function) {
                        Some(&Node::Name(name)) => self.push(Node::Call { name, arguments, state: None })?,
                        _ => return Err("calls what is no function".into()),
                    }
                }
                b'b' => {
                    let (given, object) = (self.pop()?, self.top()?);
                    match self.nodes.get_mut(object) {
                        Some(Node::Call { state, .. }) => *state = Some(given),
                        _ => return Err("gives a state to what has none".into()),
                    }
                }
                other => return Err(format!("opcode {other:#04x}, which no such data file needs")),
            }
        }
    }

    fn take(&mut self, count: usize) -> Result<Range<usize>> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("{count} more bytes expected: truncated?"))?;
        let range = self.at..end;
        self.at = end;
        Ok(range)
    }

    fn byte(&mut self) -> Result<u8> {
        let range = self.take(1)?;
        Ok(self.bytes[range.start])
    }

    /// A little-endian number of `size` bytes, at most 8.
    fn length(&mut self, size: usize) -> Result<u64> {
        let range = self.take(size)?;
        Ok(self.bytes[range].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn number(&mut self, size: usize) -> Result<()> {
        let value = self.length(size)?;
        self.push(Node::Int(value as i64))
    }

    /// A two's complement number of any length; those that fit 64 bits are read.
    fn long(&mut self) -> Result<()> {
        let size = self.byte()?.into();
        if size > 8 {
            return Err("a number of more than 64 bits".into());
        }
        let value = self.length(size)?;
        let unused = 64 - 8 * size as u32;
        let value = if size == 0 { 0 } else { ((value << unused) as i64) >> unused };
        self.push(Node::Int(value))
    }

    fn bytes_of_length(&mut self, size: usize) -> Result<()> {
        let length = usize::try_from(self.length(size)?).map_err(|e| e.to_string())?;
        let range = self.take(length)?;
        self.push(Node::Bytes(range))
    }

    /// The rest of a line, without its end.
    fn line(&mut self) -> Result<Range<usize>> {
        let length = self.bytes[self.at..].iter().position(|&byte| byte == b'\n');
        let range = self.take(length.ok_or("a name without an end")?)?;
        self.at += 1;
        Ok(range)
    }

    fn name(&mut self, module: Range<usize>, name: Range<usize>) -> Result<()> {
        let (module, name) = (&self.bytes[module], &self.bytes[name]);
        let known = Name::find(module, name).ok_or_else(|| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
            format!("names `{}.{}`, which no such data file needs: refused", text(module), text(name))
        })?;
        self.push(Node::Name(known))
    }

    fn push(&mut self, node: Node) -> Result<()> {
        if self.nodes.len() == MAX_NODES {
            return Err(format!("more than {MAX_NODES} objects"));
        }
        self.nodes.push(node);
        self.stack.push(Item::Node(self.nodes.len() - 1));
        Ok(())
    }

    fn pop(&mut self) -> Result<Id> {
        match self.stack.pop() {
            Some(Item::Node(id)) => Ok(id),
            _ => Err("the stack is empty".into()),
        }
    }

    fn top(&self) -> Result<Id> {
        match self.stack.last() {
            Some(Item::Node(id)) => Ok(*id),
            _ => Err("the stack is empty".into()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark =
            self.stack.iter().rposition(|item| matches!(item, Item::Mark)).ok_or("no mark on the stack")?;
        let items = nodes_of(self.stack.split_off(mark + 1))?;
        self.stack.pop();
        Ok(items)
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let list = self.top()?;
        match self.nodes.get_mut(list) {
            Some(Node::List(list)) => list.extend(items),
            _ => return Err("appends to what is no list".into()),
        }
        Ok(())
    }

    fn insert(&mut self, items: Vec<Id>) -> Result<()> {
        let dict = self.top()?;
        match self.nodes.get_mut(dict) {
            Some(Node::Dict(entries)) if items.len().is_multiple_of(2) => {
                entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            _ => return Err("sets entries of what is no dictionary".into()),
        }
        Ok(())
    }

    fn remember(&mut self, size: usize) -> Result<()> {
        let (key, top) = (self.length(size)? as usize, self.top()?);
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, size: usize) -> Result<()> {
        let key = self.length(size)? as usize;
        let id = *self.memo.get(&key).ok_or_else(|| format!("recalls {key}, which was not remembered"))?;
        self.stack.push(Item::Node(id));
        Ok(())
    }
}

/// The nodes of stack items among which there is no mark.
fn nodes_of(items: Vec<Item>) -> Result<Vec<Id>> {
    let node = |item| match item {
        Item::Node(id) => Ok(id),
        Item::Mark => Err("a mark among values".into()),
    };
    items.into_iter().map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_protocol_of_python_3_gives_the_same_array() -> Result<()> {
        let row: Vec<u8> = (0..3 * 32 * 32)
            .map(|n| (37 * 7 + 59 * (n / 1024) + 3 * (n % 32) + 5 * (n / 32 % 32)) as u8)
            .collect();
        for (protocol, bytes) in [
            (2, include_bytes!("../../tests/fixtures/streams/pickles/protocol_2").as_slice()),
            (3, include_bytes!("../../tests/fixtures/streams/pickles/protocol_3")),
            (4, include_bytes!("../../tests/fixtures/streams/pickles/protocol_4")),
            (5, include_bytes!("../../tests/fixtures/streams/pickles/protocol_5")),
        ] {
            let pickle = Pickle::read(bytes)?;
            let array = pickle.array(pickle.entry("data")?)?;
            assert_eq!(array.shape, [1, 3072], "protocol {protocol}");
            assert!(*array.values == *row, "protocol {protocol}");
            assert_eq!(pickle.ints(pickle.entry("fine_labels")?)?, [1], "protocol {protocol}");
        }
        Ok(())
    }

    #[test]
    fn numbers_of_all_sizes() -> Result<()> {
        let pickle = Pickle::read(
            b"\x80\x02}U\x01n](K\xffM\x34\x12J\xfe\xff\xff\xff\x8a\x00\x8a\x01\xff\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x88es.",
        )?;
        let expected = [255, 0x1234, -2, 0, -1, i64::MAX, 1];
        assert_eq!(pickle.ints(pickle.entry("n")?)?, expected);
        Ok(())
    }
}
