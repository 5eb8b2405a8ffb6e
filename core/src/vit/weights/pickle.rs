//! What a pickle would build, found out before it is built.
//!
//! candle's reader runs nothing, but it believes what it reads: it makes room for a text of the length that the file
//! claims, copies an object each time the file remembers or recalls it, so that a few dozen bytes can ask for any
//! amount of memory, and drops nested objects by recursion. [`check`] goes through the same operations with sizes in
//! place of objects and refuses what candle could not survive.

use std::{collections::HashMap, mem::size_of};

use candle_core::pickle::{Object, OpCode};

/// Deeper than any state dict: a tensor within three dictionaries is at 9.
const MOST_DEPTH: usize = 64;

/// Bytes of memory that a byte of pickle may ask for. State dicts and whole training states ask for 50 to 75.
const MOST_GROWTH: usize = 256;

/// Bytes of memory that any pickle may ask for: those of published networks have less than a megabyte.
const MOST_BYTES: usize = 1 << 30;

/// The size of an object with all that it holds.
#[derive(Clone, Copy)]
struct Size {
    bytes: usize,
    depth: usize,
}

impl Size {
    const LEAF: Self = Self { bytes: size_of::<Object>(), depth: 1 };

    /// Of text of so many bytes.
    fn text(length: usize) -> Self {
        Self { bytes: size_of::<Object>() + length, depth: 1 }
    }

    fn holds(&mut self, part: Self) {
        self.bytes = self.bytes.saturating_add(part.bytes);
        self.depth = self.depth.max(part.depth + 1);
    }
}

enum Entry {
    Mark,
    Value(Size),
}

/// Refuses a pickle that is incomplete, that asks for more than it may, or has operations which state dicts do not.
pub(super) fn check(pickle: &[u8]) -> Result<(), String> {
    let mut machine = Machine {
        rest: pickle,
        stack: Vec::new(),
        memo: HashMap::new(),
        allowed: pickle.len().saturating_mul(MOST_GROWTH).min(MOST_BYTES),
    };
    while machine.step()? {}
    Ok(())
}

struct Machine<'p> {
    rest: &'p [u8],
    stack: Vec<Entry>,
    memo: HashMap<u32, Size>,
    /// Bytes that may still be asked for.
    allowed: usize,
}

impl<'p> Machine<'p> {
    /// One operation; `false` after the last.
    fn step(&mut self) -> Result<bool, String> {
        let [code] = self.take()?;
        let code = OpCode::try_from(code).map_err(|code| {
            format!("its pickle has the operation {code:#04x}, which a state dict does not need")
        })?;
        match code {
            OpCode::Proto => self.skip(1)?,
            OpCode::Stop => return Ok(false),
            OpCode::Mark => self.stack.push(Entry::Mark),
            OpCode::None | OpCode::NewTrue | OpCode::NewFalse => self.push(Size::LEAF)?,
            OpCode::EmptyTuple | OpCode::EmptyList | OpCode::EmptyDict | OpCode::Dict => {
                self.push(Size::LEAF)?
            }
            OpCode::BinInt1 => self.number(1)?,
            OpCode::BinInt2 => self.number(2)?,
            OpCode::BinInt => self.number(4)?,
            OpCode::BinFloat => self.number(8)?,
            OpCode::Long1 => match self.take()? {
                [length @ 0..=8] => self.number(length.into())?,
                [length] => return Err(format!("its pickle has a number of {length} bytes")),
            },
            OpCode::BinUnicode => {
                let length = u32::from_le_bytes(self.take()?) as usize;
                self.skip(length)?;
                self.push(Size::text(length))?;
            }
            OpCode::Global => {
                let length = self.line()? + self.line()?;
                self.push(Size::text(length))?;
            }
            OpCode::BinPersId | OpCode::Tuple1 => self.join(1)?,
            OpCode::Tuple2 | OpCode::Reduce | OpCode::NewObj | OpCode::Build => self.join(2)?,
            OpCode::Tuple3 => self.join(3)?,
            OpCode::Tuple => {
                let mut tuple = Size::LEAF;
                self.since_mark()?.into_iter().for_each(|part| tuple.holds(part));
                self.push(tuple)?;
            }
            OpCode::Append => self.put(1)?,
            OpCode::SetItem => self.put(2)?,
            OpCode::Appends | OpCode::SetItems => {
                let parts = self.since_mark()?;
                self.extend(parts)?;
            }
            OpCode::BinPut => {
                let [id] = self.take()?;
                self.remember(id.into())?;
            }
            OpCode::LongBinPut => {
                let id = u32::from_le_bytes(self.take()?);
                self.remember(id)?;
            }
            OpCode::BinGet => {
                let [id] = self.take()?;
                self.recall(id.into())?;
            }
            OpCode::LongBinGet => {
                let id = u32::from_le_bytes(self.take()?);
                self.recall(id)?;
            }
        }
        Ok(true)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(incomplete)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn skip(&mut self, length: usize) -> Result<(), String> {
        self.rest = self.rest.get(length..).ok_or_else(incomplete)?;
        Ok(())
    }

    /// Skips a line and says how long it is.
    fn line(&mut self) -> Result<usize, String> {
        let length = self.rest.iter().position(|&byte| byte == b'\n').ok_or_else(incomplete)?;
        self.skip(length + 1)?;
        Ok(length)
    }

    fn number(&mut self, length: usize) -> Result<(), String> {
        self.skip(length)?;
        self.push(Size::LEAF)
    }

    /// Accounts for memory that was not there before.
    fn spend(&mut self, bytes: usize) -> Result<(), String> {
        self.allowed = self.allowed.checked_sub(bytes).ok_or("its pickle repeats itself without end")?;
        Ok(())
    }

    /// A new object; what it holds has been accounted for.
    fn push(&mut self, size: Size) -> Result<(), String> {
        if size.depth > MOST_DEPTH {
            return Err(format!("its pickle nests objects more than {MOST_DEPTH} deep"));
        }
        self.spend(Size::LEAF.bytes)?;
        self.stack.push(Entry::Value(size));
        Ok(())
    }

    fn pop(&mut self) -> Result<Size, String> {
        match self.stack.pop() {
            Some(Entry::Value(size)) => Ok(size),
            Some(Entry::Mark) | None => Err("its pickle takes more than it gave".into()),
        }
    }

    fn join(&mut self, parts: usize) -> Result<(), String> {
        let mut whole = Size::LEAF;
        for _ in 0..parts {
            whole.holds(self.pop()?);
        }
        self.push(whole)
    }

    fn since_mark(&mut self) -> Result<Vec<Size>, String> {
        let mut parts = Vec::new();
        loop {
            match self.stack.pop() {
                Some(Entry::Value(size)) => parts.push(size),
                Some(Entry::Mark) => return Ok(parts),
                None => return Err("its pickle ends what it did not begin".into()),
            }
        }
    }

    /// Puts the last objects into the one before them.
    fn put(&mut self, parts: usize) -> Result<(), String> {
        let parts = (0..parts).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        self.extend(parts)
    }

    fn extend(&mut self, parts: Vec<Size>) -> Result<(), String> {
        let mut whole = self.pop()?;
        parts.into_iter().for_each(|part| whole.holds(part));
        self.push(whole)
    }

    fn remember(&mut self, id: u32) -> Result<(), String> {
        let size = self.pop()?;
        self.spend(size.bytes)?;
        self.memo.insert(id, size);
        self.push(size)
    }

    fn recall(&mut self, id: u32) -> Result<(), String> {
        let size = self.memo.get(&id).copied().ok_or("its pickle recalls what it did not remember")?;
        self.spend(size.bytes)?;
        self.push(size)
    }
}

fn incomplete() -> String {
    "its pickle breaks off".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(pickle: &[u8], word: &str) {
        let said = check(pickle).err().unwrap_or_default();
        assert!(said.contains(word), "{said:?} does not say {word:?}");
    }

    #[test]
    fn ordinary_pickles_pass() {
        // {"a": (1, 2.0), "b": ["a"]} by Python's protocol 2.
        let pickle = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01G@\x00\x00\x00\x00\x00\x00\x00\x86q\x02\
            X\x01\x00\x00\x00bq\x03]q\x04h\x01au.";
        assert_eq!(check(pickle), Ok(()));
        (0..pickle.len()).for_each(|end| refused(&pickle[..end], "breaks off"));
    }

    #[test]
    fn what_would_exhaust_memory_or_the_stack_is_refused() {
        // Text of 4 GB in six bytes.
        refused(b"\x80\x02X\xff\xff\xff\xffa.", "breaks off");
        // A pair of itself, remembered, forty times over: 2^40 objects.
        let doubled = b"h\x00h\x00\x86q\x00".repeat(40);
        refused(&[b"\x80\x02K\x01q\x00", doubled.as_slice(), b"."].concat(), "without end");
        // A tuple in a tuple in a tuple ...
        refused(&[b"\x80\x02K\x01".as_slice(), &b"\x85".repeat(100_000), b"."].concat(), "64 deep");
        // The same by way of a list that is appended to.
        let lists = [b"]".repeat(100_000), b"a".repeat(99_999)].concat();
        refused(&[b"\x80\x02".as_slice(), &lists, b"."].concat(), "64 deep");
        // A number of 255 bytes, which would be shifted by 2040 bits.
        refused(&[b"\x8a\xff".as_slice(), &[1; 255], b"."].concat(), "255 bytes");
    }

    #[test]
    fn what_is_no_state_dict_is_refused() {
        refused(b"\x80\x02h\x05.", "did not remember");
        refused(b"\x80\x02u.", "did not begin");
        refused(b"\x80\x02\x86.", "more than it gave");
        refused(b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.", "operation 0x95");
    }
}
