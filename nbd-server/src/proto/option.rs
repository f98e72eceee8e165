//! The data of options, parsed. Lengths inside it come from the client: each is compared with what is there.

use super::wire::{OPTION_REPLY_MAGIC, info, rep};
use crate::export::Export;
use crate::limits::MAX_STRING_BYTES;

/// Why an option's data cannot be what it should; the message goes to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub &'static str);

/// `NBD_OPT_INFO` and `NBD_OPT_GO`: an export's name and what the client wants to be told about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InfoRequest<'a> {
    pub name: &'a str,
    wanted: &'a [u8],
}

impl<'a> InfoRequest<'a> {
    /// From `u32 length, name, u16 count, count * u16`, and nothing more.
    pub fn parse(data: &'a [u8]) -> Result<InfoRequest<'a>, Malformed> {
        let short = Malformed("option data is shorter than its lengths say");
        let (len, rest) = data.split_first_chunk::<4>().ok_or(short)?;
        let len = u32::from_be_bytes(*len) as usize;
        let (name, rest) = rest.split_at_checked(len).ok_or(short)?;
        let (count, wanted) = rest.split_first_chunk::<2>().ok_or(short)?;
        if wanted.len() != usize::from(u16::from_be_bytes(*count)) * 2 {
            return Err(Malformed("number of information requests does not fit the option's length"));
        }
        Ok(InfoRequest { name: parse_name(name)?, wanted })
    }

    /// True if the client asked for this kind of information.
    pub fn wants(&self, kind: u16) -> bool {
        self.wanted.chunks_exact(2).any(|pair| pair == kind.to_be_bytes())
    }
}

/// The name of an export.
pub(super) fn parse_name(bytes: &[u8]) -> Result<&str, Malformed> {
    parse_string(bytes).ok_or(Malformed("export name is not UTF-8 of at most 4096 bytes without NUL"))
}

/// A string as the specification has it: UTF-8 of at most 4096 bytes without NUL.
pub(super) fn parse_string(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > MAX_STRING_BYTES {
        return None;
    }
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

/// Appends one reply to an option. `data` is at most a name, a description and a few numbers long.
pub(super) fn put_reply(out: &mut Vec<u8>, option: u32, reply: u32, data: &[&[u8]]) {
    let len: usize = data.iter().map(|piece| piece.len()).sum();
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&reply.to_be_bytes());
    out.extend_from_slice(&(len as u32).to_be_bytes());
    data.iter().for_each(|piece| out.extend_from_slice(piece));
}

/// Appends what the client wants to know about `export`; `NBD_INFO_EXPORT`, with the transmission flags `flags`, is
/// always told.
pub(super) fn put_infos(
    out: &mut Vec<u8>,
    option: u32,
    request: &InfoRequest<'_>,
    export: &Export,
    flags: u16,
) {
    let (size, flags) = (export.geometry.size_bytes.to_be_bytes(), flags.to_be_bytes());
    put_reply(out, option, rep::INFO, &[&info::EXPORT.to_be_bytes(), &size, &flags]);
    if request.wants(info::NAME) {
        put_reply(out, option, rep::INFO, &[&info::NAME.to_be_bytes(), export.name.as_bytes()]);
    }
    if request.wants(info::DESCRIPTION) && !export.description.is_empty() {
        let kind = info::DESCRIPTION.to_be_bytes();
        put_reply(out, option, rep::INFO, &[&kind, export.description.as_bytes()]);
    }
    if request.wants(info::BLOCK_SIZE) {
        let sizes = export.block_sizes();
        let [min, preferred, max] = [sizes.min, sizes.preferred, sizes.max].map(u32::to_be_bytes);
        put_reply(out, option, rep::INFO, &[&info::BLOCK_SIZE.to_be_bytes(), &min, &preferred, &max]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(name_len: u32, name: &[u8], count: u16, kinds: &[u16]) -> Vec<u8> {
        let mut data = name_len.to_be_bytes().to_vec();
        data.extend_from_slice(name);
        data.extend_from_slice(&count.to_be_bytes());
        kinds.iter().for_each(|kind| data.extend_from_slice(&kind.to_be_bytes()));
        data
    }

    #[test]
    fn a_well_formed_request_is_understood() {
        let bytes = data(3, b"vol", 2, &[info::NAME, info::BLOCK_SIZE]);
        let request = InfoRequest::parse(&bytes).unwrap();
        assert_eq!(request.name, "vol");
        assert!(request.wants(info::NAME) && request.wants(info::BLOCK_SIZE));
        assert!(!request.wants(info::DESCRIPTION));
    }

    #[test]
    fn lengths_that_disagree_with_the_data_are_malformed() {
        let cases = [
            vec![],
            vec![0, 0, 0],
            data(4, b"vol", 0, &[]),
            data(u32::MAX, b"vol", 0, &[]),
            data(2, b"vol", 0, &[]),
            data(3, b"vol", 1, &[]),
            data(3, b"vol", 0, &[1]),
            data(3, b"v\0l", 0, &[]),
            data(3, b"v\xffl", 0, &[]),
            data(4097, &[b'n'; 4097], 0, &[]),
        ];
        for case in cases {
            assert!(InfoRequest::parse(&case).is_err(), "{case:?}");
        }
        assert!(InfoRequest::parse(&data(4096, &[b'n'; 4096], 0, &[])).is_ok());
    }
}
