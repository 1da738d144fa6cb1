//! Decodes the messages of the `pgoutput` plugin, protocol versions 1 and 2.
//!
//! Version 2 sends large transactions while they run, in blocks: [`Message::StreamStart`], changes, [`Message::StreamStop`].
//! Inside a block each message names its subtransaction and is one for [`decode_in_block`]. Blocks of several
//! transactions, and whole ones between them, follow each other; they never contain each other.
//!
//! Nothing is copied: names and values are slices of the read buffer. A message is checked to its end before
//! it is handed out, so what walks a row later cannot fail. Truncated or garbled input is a [`DecodeError`].

use std::str;

use thiserror::Error;

use crate::position::Lsn;

/// Input that pgoutput would not send.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The message ends inside a field.
    #[error("pgoutput message {0:?} ends too early")]
    Short(char),
    /// Bytes follow the last field.
    #[error("pgoutput message {0:?} goes on after its end")]
    Long(char),
    /// A message, tuple or column kind that these protocol versions do not have.
    #[error("unknown {what} {kind:?} in a pgoutput message")]
    Unknown {
        /// What was being read.
        what: &'static str,
        /// What was found.
        kind: char,
    },
    /// A name that is not UTF-8, although we asked for it.
    #[error("a name in a pgoutput message is not UTF-8")]
    NotUtf8,
}

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// A transaction starts; everything up to [`Message::Commit`] belongs to it.
    Begin {
        /// The LSN of the commit record (not its end).
        commit_lsn: Lsn,
        /// Microseconds since 2000-01-01.
        commit_time: i64,
        /// The top-level xid, without its epoch.
        xid: u32,
    },
    /// The transaction is over.
    Commit {
        /// The LSN of the commit record.
        commit_lsn: Lsn,
        /// Where the commit record ends: what a standby must have replayed to show the commit.
        end_lsn: Lsn,
        /// Microseconds since 2000-01-01.
        commit_time: i64,
    },
    /// The transaction came from another node.
    Origin {
        /// Its commit LSN there.
        lsn: Lsn,
        /// The origin's name.
        name: &'a str,
    },
    /// The layout of a table, sent before its first row and after every change of it.
    Relation(Relation<'a>),
    /// A type that is not built in.
    Type {
        /// Its oid.
        oid: u32,
        /// Its schema.
        schema: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// A new row.
    Insert {
        /// The table's oid.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A changed row.
    Update {
        /// The table's oid.
        relation: u32,
        /// The row before, if the replica identity makes Postgres send it.
        old: Option<OldTuple<'a>>,
        /// The row after.
        new: Tuple<'a>,
    },
    /// A row that is gone.
    Delete {
        /// The table's oid.
        relation: u32,
        /// What the replica identity keeps of it.
        old: OldTuple<'a>,
    },
    /// Tables that were emptied.
    Truncate(Truncate<'a>),
    /// `pg_logical_emit_message`.
    Logical {
        /// Whether it belongs to the transaction around it.
        transactional: bool,
        /// Where it is in the log.
        lsn: Lsn,
        /// Who it is for.
        prefix: &'a str,
        /// What it says.
        content: &'a [u8],
    },
    /// Changes of a transaction that has not committed yet follow.
    StreamStart {
        /// The top-level xid, without its epoch.
        xid: u32,
        /// Nothing of it was sent before.
        is_first: bool,
    },
    /// These were all for now.
    StreamStop,
    /// A transaction that was sent while it ran has committed.
    StreamCommit {
        /// The top-level xid, without its epoch.
        xid: u32,
        /// The LSN of the commit record.
        commit_lsn: Lsn,
        /// Where the commit record ends.
        end_lsn: Lsn,
        /// Microseconds since 2000-01-01.
        commit_time: i64,
    },
    /// A subtransaction of it was rolled back, or all of it.
    StreamAbort {
        /// The top-level xid, without its epoch.
        xid: u32,
        /// The subtransaction's; the same if all of it was.
        subxid: u32,
    },
}

/// A table's layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relation<'a> {
    /// The table's oid.
    pub oid: u32,
    /// Its schema.
    pub schema: &'a str,
    /// Its name.
    pub name: &'a str,
    /// `d` default, `n` nothing, `f` full, `i` index.
    pub replica_identity: u8,
    columns: &'a [u8],
    count: u16,
}

/// A column of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column<'a> {
    /// Whether it belongs to the replica identity (all columns do under `FULL`).
    pub in_identity: bool,
    /// Its name.
    pub name: &'a str,
    /// The oid of its type.
    pub type_oid: u32,
}

impl<'a> Relation<'a> {
    /// The columns, in the order of the values in a [`Tuple`].
    pub fn columns(&self) -> impl Iterator<Item = Column<'a>> + use<'a> {
        let mut reader = Reader { tag: 'R', rest: self.columns };
        // Checked when the message was decoded: `ok()` ends the walk only at its end.
        (0..self.count).map_while(move |_| reader.column().ok())
    }
}

/// What an UPDATE or DELETE says of the row before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// The columns of the replica identity; all others read NULL whatever they were.
    Key(Tuple<'a>),
    /// The whole row (`REPLICA IDENTITY FULL`).
    Full(Tuple<'a>),
}

impl<'a> OldTuple<'a> {
    /// The row.
    pub fn tuple(&self) -> Tuple<'a> {
        match self {
            OldTuple::Key(tuple) | OldTuple::Full(tuple) => *tuple,
        }
    }
}

/// The values of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    count: u16,
    bytes: &'a [u8],
}

/// A value of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// NULL.
    Null,
    /// A large value that the UPDATE did not touch: it was not sent.
    Unchanged,
    /// The value as text.
    Text(&'a [u8]),
}

impl<'a> Tuple<'a> {
    /// How many columns the row has.
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Whether the row has no columns.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The values, in the order of [`Relation::columns`].
    pub fn values(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut reader = Reader { tag: 'T', rest: self.bytes };
        (0..self.count).map_while(move |_| reader.value().ok())
    }
}

/// The tables of a TRUNCATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncate<'a> {
    oids: &'a [u8],
}

impl<'a> Truncate<'a> {
    /// Their oids.
    pub fn relations(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.oids.as_chunks::<4>().0.iter().map(|oid| u32::from_be_bytes(*oid))
    }
}

/// The table of a row that is inserted, updated or deleted, without a look at the row: rows of tables that nobody guards
/// cost no more than this. None: another message, or not one at all.
pub fn table_of_row(bytes: &[u8]) -> Option<u32> {
    match bytes {
        [b'I' | b'U' | b'D', rest @ ..] => Some(u32::from_be_bytes(*rest.first_chunk()?)),
        _ => None,
    }
}

/// The same of a message inside a block.
pub fn table_of_row_in_block(bytes: &[u8]) -> Option<u32> {
    match bytes {
        [b'I' | b'U' | b'D', _, _, _, _, rest @ ..] => Some(u32::from_be_bytes(*rest.first_chunk()?)),
        _ => None,
    }
}

/// Decodes one message.
///
/// # Errors
/// When the input is not exactly one message, as it is outside of a block.
pub fn decode(bytes: &[u8]) -> Result<Message<'_>, DecodeError> {
    let Some((&tag, rest)) = bytes.split_first() else { return Err(DecodeError::Short(' ')) };
    message(Reader { tag: char::from(tag), rest }, tag)
}

/// Decodes one message inside a block, and says which subtransaction it belongs to: the top-level one has its own xid.
///
/// # Errors
/// When the input is not exactly one message, as it is inside a block.
pub fn decode_in_block(bytes: &[u8]) -> Result<(Option<u32>, Message<'_>), DecodeError> {
    let Some((&tag, rest)) = bytes.split_first() else { return Err(DecodeError::Short(' ')) };
    let mut reader = Reader { tag: char::from(tag), rest };
    let xid = match tag {
        b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M' => Some(reader.u32()?),
        b'E' | b'O' => None,
        kind => return Err(unknown("message in a block", kind)),
    };
    Ok((xid, message(reader, tag)?))
}

fn message(mut reader: Reader<'_>, tag: u8) -> Result<Message<'_>, DecodeError> {
    let message = match tag {
        b'B' => Message::Begin { commit_lsn: reader.lsn()?, commit_time: reader.i64()?, xid: reader.u32()? },
        b'C' => {
            reader.u8()?; // Flags, unused.
            Message::Commit { commit_lsn: reader.lsn()?, end_lsn: reader.lsn()?, commit_time: reader.i64()? }
        }
        b'O' => Message::Origin { lsn: reader.lsn()?, name: reader.text()? },
        b'R' => Message::Relation(reader.relation()?),
        b'Y' => Message::Type { oid: reader.u32()?, schema: reader.text()?, name: reader.text()? },
        b'I' => {
            let relation = reader.u32()?;
            match reader.u8()? {
                b'N' => Message::Insert { relation, new: reader.tuple()? },
                kind => return Err(unknown("row kind", kind)),
            }
        }
        b'U' => {
            let relation = reader.u32()?;
            let (old, kind) = match reader.u8()? {
                b'K' => (Some(OldTuple::Key(reader.tuple()?)), reader.u8()?),
                b'O' => (Some(OldTuple::Full(reader.tuple()?)), reader.u8()?),
                kind => (None, kind),
            };
            match kind {
                b'N' => Message::Update { relation, old, new: reader.tuple()? },
                kind => return Err(unknown("row kind", kind)),
            }
        }
        b'D' => {
            let relation = reader.u32()?;
            let old = match reader.u8()? {
                b'K' => OldTuple::Key(reader.tuple()?),
                b'O' => OldTuple::Full(reader.tuple()?),
                kind => return Err(unknown("row kind", kind)),
            };
            Message::Delete { relation, old }
        }
        b'T' => {
            let count = reader.u32()? as usize;
            reader.u8()?; // CASCADE, RESTART IDENTITY.
            let length = count.checked_mul(4).ok_or(DecodeError::Short('T'))?;
            Message::Truncate(Truncate { oids: reader.take(length)? })
        }
        b'M' => {
            let flags = reader.u8()?;
            let (lsn, prefix) = (reader.lsn()?, reader.text()?);
            let length = reader.u32()? as usize;
            Message::Logical { transactional: flags & 1 != 0, lsn, prefix, content: reader.take(length)? }
        }
        b'S' => Message::StreamStart { xid: reader.u32()?, is_first: reader.u8()? == 1 },
        b'E' => Message::StreamStop,
        b'c' => {
            let xid = reader.u32()?;
            reader.u8()?; // Flags, unused.
            let (commit_lsn, end_lsn, commit_time) = (reader.lsn()?, reader.lsn()?, reader.i64()?);
            Message::StreamCommit { xid, commit_lsn, end_lsn, commit_time }
        }
        b'A' => Message::StreamAbort { xid: reader.u32()?, subxid: reader.u32()? },
        kind => return Err(unknown("message", kind)),
    };
    if reader.rest.is_empty() { Ok(message) } else { Err(DecodeError::Long(reader.tag)) }
}

fn unknown(what: &'static str, kind: u8) -> DecodeError {
    DecodeError::Unknown { what, kind: char::from(kind) }
}

/// Walks a message; every step checks that the bytes are there.
struct Reader<'a> {
    tag: char,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(DecodeError::Short(self.tag))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Short(self.tag))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn i64(&mut self) -> Result<i64, DecodeError> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        Ok(Lsn(u64::from_be_bytes(self.array()?)))
    }

    /// Text up to a zero byte.
    fn text(&mut self) -> Result<&'a str, DecodeError> {
        let end = self.rest.iter().position(|b| *b == 0).ok_or(DecodeError::Short(self.tag))?;
        let text = str::from_utf8(&self.rest[..end]).map_err(|_| DecodeError::NotUtf8)?;
        self.rest = &self.rest[end + 1..];
        Ok(text)
    }

    fn relation(&mut self) -> Result<Relation<'a>, DecodeError> {
        let oid = self.u32()?;
        let schema = match self.text()? {
            "" => "pg_catalog",
            schema => schema,
        };
        let name = self.text()?;
        let replica_identity = self.u8()?;
        let count = self.u16()?;
        let columns = self.rest;
        for _ in 0..count {
            self.column()?;
        }
        let columns = &columns[..columns.len() - self.rest.len()];
        Ok(Relation { oid, schema, name, replica_identity, columns, count })
    }

    fn column(&mut self) -> Result<Column<'a>, DecodeError> {
        let flags = self.u8()?;
        let (name, type_oid) = (self.text()?, self.u32()?);
        self.u32()?; // The type's modifier.
        Ok(Column { in_identity: flags & 1 != 0, name, type_oid })
    }

    fn tuple(&mut self) -> Result<Tuple<'a>, DecodeError> {
        let count = self.u16()?;
        let bytes = self.rest;
        for _ in 0..count {
            self.value()?;
        }
        Ok(Tuple { count, bytes: &bytes[..bytes.len() - self.rest.len()] })
    }

    fn value(&mut self) -> Result<Value<'a>, DecodeError> {
        match self.u8()? {
            b'n' => Ok(Value::Null),
            b'u' => Ok(Value::Unchanged),
            b't' => {
                let length = self.u32()? as usize;
                Ok(Value::Text(self.take(length)?))
            }
            // Binary is never asked for.
            kind => Err(unknown("value kind", kind)),
        }
    }
}

#[cfg(test)]
mod tests;
