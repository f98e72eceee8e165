//! NBD URIs, as the NBD project's doc/uri.md says: where an export is, in one word.
//!
//! `nbd://HOST:PORT/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`, and the same with `nbds` for TLS. What is printed
//! is read back as the same value. What could be misread is refused: a parameter that means nothing here, a
//! socket for TCP, a host for a unix socket.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use crate::limits::{MAX_STRING_BYTES, MAX_URI_BYTES};

/// The port of a URI that names none (assigned by IANA).
pub const DEFAULT_PORT: u16 = 10809;

/// An export and where it is.
///
/// ```
/// use nbd_server::client::NbdUri;
///
/// let uri: NbdUri = "nbd://storage.example/vol%200".parse()?;
/// assert_eq!(uri.export, "vol 0");
/// assert_eq!(uri.to_string(), "nbd://storage.example:10809/vol%200");
/// # Ok::<(), nbd_server::client::UriError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NbdUri {
    /// The server.
    pub address: Address,
    /// The export's name; may be empty.
    pub export: String,
    /// How TLS is to be used; `None` for a connection in clear.
    pub tls: Option<TlsParams>,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A name or an address (IPv6 without brackets), and a port.
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// A unix socket.
    Unix(PathBuf),
}

/// What a URI says about TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsParams {
    /// Folder with `ca-cert.pem` and, if the server wants to know the client, `client-cert.pem`, `client-key.pem`.
    pub certificates: Option<PathBuf>,
    /// The name the server's certificate must have, if not the host's.
    pub hostname: Option<String>,
}

/// Why a text is no NBD URI that can be used here. Each says what to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// It does not start with a scheme of NBD.
    #[error("{0:?} is no NBD URI: write nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH")]
    NotNbd(String),
    /// Sockets of virtual machines.
    #[error("vsock is not supported: write nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH")]
    Vsock,
    /// It is longer than a URI may be.
    #[error("the URI is longer than {MAX_URI_BYTES} bytes: shorten it")]
    TooLong,
    /// A TCP URI without a host.
    #[error("the URI names no host: write {0}://HOST/EXPORT, or {0}+unix:///EXPORT?socket=PATH")]
    NoHost(&'static str),
    /// The port is no port.
    #[error("{0:?} is no port: write a number from 1 to 65535, or leave it out for {DEFAULT_PORT}")]
    Port(String),
    /// The host cannot be one.
    #[error("{0:?} is no host: write a name or an address, an IPv6 one in brackets")]
    Host(String),
    /// A user name, as pre-shared keys have it.
    #[error("the URI names a user, but pre-shared keys are not supported: leave USER@ out")]
    User,
    /// A host for a unix socket.
    #[error("a unix socket has no host: write {scheme}:///{export}?socket=PATH")]
    UnixHost {
        /// The URI's scheme.
        scheme: &'static str,
        /// Its export, as written.
        export: String,
    },
    /// A unix URI without a socket.
    #[error("the URI names no socket: add ?socket=PATH")]
    NoSocket,
    /// A socket for TCP.
    #[error("socket= is for nbd+unix and nbds+unix: write those, or leave it out")]
    TcpSocket,
    /// The path of a socket cannot be one.
    #[error("the path of the socket is empty or has a NUL; abstract sockets are not supported")]
    SocketPath,
    /// An export name that the protocol does not allow.
    #[error("the export's name has a NUL, is no UTF-8, or is longer than {MAX_STRING_BYTES} bytes")]
    Export,
    /// An unescaped character that means something else.
    #[error("the URI has a bare '#': write %23")]
    Fragment,
    /// A percent sign without two hexadecimal digits.
    #[error("{0:?} has a % without two hexadecimal digits: write %25 for the sign itself")]
    Percent(String),
    /// A parameter that is not known.
    #[error(
        "parameter {0:?} is not known: known are socket, tls-certificates, tls-hostname, tls-type, tls-verify-peer"
    )]
    Unknown(String),
    /// A parameter that stands twice.
    #[error("parameter {0} is given twice: write it once")]
    Twice(&'static str),
    /// A TLS parameter in a URI without TLS.
    #[error("parameter {0} is for TLS: write nbds:// or nbds+unix://")]
    NeedsTls(&'static str),
    /// A way of TLS that is not supported.
    #[error("{0} is not supported: only TLS with certificates, and they are always verified")]
    TlsWay(String),
}

/// The four schemes.
const SCHEMES: [(&str, bool, bool); 4] =
    [("nbd", false, false), ("nbds", true, false), ("nbd+unix", false, true), ("nbds+unix", true, true)];

/// What need not be escaped (RFC 3986, "unreserved").
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const PATH: &AsciiSet = &NAME.remove(b'/');
const HOST: &AsciiSet = &NAME.remove(b':');

impl NbdUri {
    /// True if `text` means to be a URI of NBD and no path: it starts with `nbd` and has `:` after its scheme.
    pub fn is_meant_by(text: &str) -> bool {
        text.split_once(':').is_some_and(|(scheme, rest)| {
            scheme.to_ascii_lowercase().starts_with("nbd") && rest.starts_with("//")
        })
    }

    fn scheme(&self) -> &'static str {
        let unix = matches!(self.address, Address::Unix(_));
        let found = SCHEMES.iter().find(|(_, tls, of_unix)| (*tls, *of_unix) == (self.tls.is_some(), unix));
        found.map_or("nbd", |(scheme, ..)| scheme)
    }
}

impl FromStr for NbdUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<NbdUri, UriError> {
        if text.len() > MAX_URI_BYTES {
            return Err(UriError::TooLong);
        }
        let not_nbd = || UriError::NotNbd(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(not_nbd)?;
        let scheme = scheme.to_ascii_lowercase();
        if matches!(scheme.as_str(), "nbd+vsock" | "nbds+vsock") {
            return Err(UriError::Vsock);
        }
        let &(scheme, tls, unix) = SCHEMES.iter().find(|(name, ..)| *name == scheme).ok_or_else(not_nbd)?;
        if rest.contains('#') {
            return Err(UriError::Fragment);
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let params = Params::parse(query, tls)?;
        let address = match (unix, params.socket) {
            (true, _) if !authority.is_empty() => {
                return Err(UriError::UnixHost { scheme, export: path.to_owned() });
            }
            (true, socket) => Address::Unix(socket.ok_or(UriError::NoSocket)?),
            (false, Some(_)) => return Err(UriError::TcpSocket),
            (false, None) => parse_authority(authority, if tls { "nbds" } else { "nbd" })?,
        };
        let export = String::from_utf8(decode(path)?).map_err(|_| UriError::Export)?;
        if export.contains('\0') || export.len() > MAX_STRING_BYTES {
            return Err(UriError::Export);
        }
        Ok(NbdUri { address, export, tls: tls.then_some(params.tls) })
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = percent_encode(self.export.as_bytes(), NAME);
        let mut separator = '?';
        match &self.address {
            Address::Tcp { host, port } => {
                let name = percent_encode(host.as_bytes(), HOST);
                let host = if host.contains(':') { format!("[{name}]") } else { name.to_string() };
                write!(f, "{}://{host}:{port}/{export}", self.scheme())?;
            }
            Address::Unix(path) => {
                let path = percent_encode(path.as_os_str().as_bytes(), PATH);
                write!(f, "{}:///{export}?socket={path}", self.scheme())?;
                separator = '&';
            }
        }
        let Some(tls) = &self.tls else { return Ok(()) };
        if let Some(folder) = &tls.certificates {
            let folder = percent_encode(folder.as_os_str().as_bytes(), PATH);
            write!(f, "{separator}tls-certificates={folder}")?;
            separator = '&';
        }
        match &tls.hostname {
            Some(name) => write!(f, "{separator}tls-hostname={}", percent_encode(name.as_bytes(), NAME)),
            None => Ok(()),
        }
    }
}

/// `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`.
fn parse_authority(authority: &str, scheme: &'static str) -> Result<Address, UriError> {
    if authority.contains('@') {
        return Err(UriError::User);
    }
    let bad = || UriError::Host(authority.to_owned());
    let (host, port) = match authority.strip_prefix('[') {
        Some(inner) => {
            let (host, after) = inner.split_once(']').ok_or_else(bad)?;
            if !host.contains(':') {
                return Err(bad());
            }
            (host, after.strip_prefix(':').or(after.is_empty().then_some("")).ok_or_else(bad)?)
        }
        None if authority.matches(':').count() > 1 => return Err(bad()),
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    if host.is_empty() {
        return Err(UriError::NoHost(scheme));
    }
    let port = match port {
        "" => DEFAULT_PORT,
        // A sign would pass for a number.
        text if !text.starts_with('+') => match text.parse() {
            Ok(port) if port > 0 => port,
            _ => return Err(UriError::Port(text.to_owned())),
        },
        text => return Err(UriError::Port(text.to_owned())),
    };
    let host = String::from_utf8(decode(host)?).map_err(|_| bad())?;
    let odd = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '/' | '[' | ']' | '@');
    let many_colons = !authority.starts_with('[') && host.contains(':');
    if host.is_empty() || host.contains(odd) || many_colons {
        return Err(bad());
    }
    Ok(Address::Tcp { host, port })
}

#[derive(Default)]
struct Params {
    socket: Option<PathBuf>,
    tls: TlsParams,
}

impl Params {
    fn parse(query: &str, tls: bool) -> Result<Params, UriError> {
        let mut params = Params::default();
        let (mut kind, mut verify) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let for_tls = |name| if tls { Ok(()) } else { Err(UriError::NeedsTls(name)) };
            match key {
                "socket" => once("socket", &mut params.socket, decode_path(value)?)?,
                "tls-certificates" => {
                    for_tls("tls-certificates")?;
                    once("tls-certificates", &mut params.tls.certificates, decode_path(value)?)?;
                }
                "tls-hostname" => {
                    for_tls("tls-hostname")?;
                    let name =
                        String::from_utf8(decode(value)?).map_err(|_| UriError::Host(value.to_owned()))?;
                    once("tls-hostname", &mut params.tls.hostname, name)?;
                }
                "tls-type" => {
                    for_tls("tls-type")?;
                    once("tls-type", &mut kind, value)?;
                }
                "tls-verify-peer" => {
                    for_tls("tls-verify-peer")?;
                    once("tls-verify-peer", &mut verify, value)?;
                }
                other => return Err(UriError::Unknown(other.to_owned())),
            }
        }
        if let Some(kind) = kind.filter(|kind| *kind != "x509") {
            return Err(UriError::TlsWay(format!("tls-type={kind}")));
        }
        if let Some(verify) = verify.filter(|verify| *verify != "1") {
            return Err(UriError::TlsWay(format!("tls-verify-peer={verify}")));
        }
        Ok(params)
    }
}

fn once<T>(name: &'static str, place: &mut Option<T>, value: T) -> Result<(), UriError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(UriError::Twice(name)),
    }
}

fn decode_path(text: &str) -> Result<PathBuf, UriError> {
    let bytes = decode(text)?;
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(UriError::SocketPath);
    }
    Ok(PathBuf::from(OsString::from_vec(bytes)))
}

/// Decodes percent signs; the crate lets malformed ones pass, which would make two texts of one name.
fn decode(text: &str) -> Result<Vec<u8>, UriError> {
    let escapes_are_whole = text.split('%').skip(1).all(|after| {
        let mut digits = after.bytes();
        let mut is_digit = || digits.next().is_some_and(|byte| byte.is_ascii_hexdigit());
        is_digit() && is_digit()
    });
    if !escapes_are_whole {
        return Err(UriError::Percent(text.to_owned()));
    }
    Ok(percent_decode_str(text).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(host: &str, port: u16, export: &str) -> NbdUri {
        let address = Address::Tcp { host: host.into(), port };
        NbdUri { address, export: export.into(), tls: None }
    }

    #[test]
    fn the_examples_of_the_standard_mean_what_it_says() {
        let cases = [
            ("nbd://example.com/disk", tcp("example.com", 10809, "disk")),
            ("nbd://example.com/", tcp("example.com", 10809, "")),
            ("nbd://example.com", tcp("example.com", 10809, "")),
            ("nbd://example.com//disk", tcp("example.com", 10809, "/disk")),
            ("nbd://example.com/hello%20world", tcp("example.com", 10809, "hello world")),
            ("NBD://example.com:10810/export", tcp("example.com", 10810, "export")),
            ("nbd://[::1]:7/x", tcp("::1", 7, "x")),
            ("nbd://[fe80::1%25eth0]/x", tcp("fe80::1%eth0", 10809, "x")),
        ];
        for (text, uri) in cases {
            assert_eq!(text.parse(), Ok(uri), "{text}");
        }
        let unix: NbdUri = "nbd+unix:///disk?socket=sock".parse().unwrap();
        assert_eq!((unix.address, unix.export), (Address::Unix("sock".into()), "disk".into()));
        let tls: NbdUri = "nbds+unix:///?socket=/s&tls-certificates=/pki&tls-hostname=h".parse().unwrap();
        assert_eq!(tls.to_string(), "nbds+unix:///?socket=/s&tls-certificates=/pki&tls-hostname=h");
    }

    #[test]
    fn what_could_be_misread_is_refused_with_what_to_write() {
        let cases = [
            ("/dev/sda", "write nbd://"),
            ("http://host/x", "write nbd://"),
            ("nbd:host:10809", "write nbd://"),
            ("nbd+vsock://2/x", "vsock"),
            ("nbd:///x", "names no host"),
            ("nbd://host:0/x", "is no port"),
            ("nbd://host:99999/x", "is no port"),
            ("nbd://host:+80/x", "is no port"),
            ("nbd://::1/x", "in brackets"),
            ("nbd://[::1/x", "is no host"),
            ("nbd://[::1]x/x", "is no host"),
            ("nbd://me@host/x", "USER@"),
            ("nbd://host/x?socket=/s", "nbd+unix"),
            ("nbd+unix://host/x?socket=/s", "nbd+unix:///x?socket=PATH"),
            ("nbd+unix:///x", "add ?socket=PATH"),
            ("nbd+unix:///x?socket=", "path of the socket"),
            ("nbd+unix:///x?socket=%00abstract", "path of the socket"),
            ("nbd+unix:///x?socket=/a&socket=/b", "twice"),
            ("nbd://host/x%2", "%25"),
            ("nbd://host/%00", "NUL"),
            ("nbd://host/%ff", "UTF-8"),
            ("nbd://host/x#y", "%23"),
            ("nbd://host/x?sokcet=/s", "not known"),
            ("nbd://host/x?tls-hostname=h", "nbds://"),
            ("nbds://host/x?tls-type=psk", "only TLS with certificates"),
            ("nbds://host/x?tls-verify-peer=0", "always verified"),
        ];
        for (text, part) in cases {
            let error = text.parse::<NbdUri>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_path_is_not_meant_as_a_uri_and_a_misspelt_uri_is() {
        assert!(NbdUri::is_meant_by("nbd+unix:///x?socket=/s"));
        assert!(NbdUri::is_meant_by("NBD+TCP://x"));
        assert!(!NbdUri::is_meant_by("/dev/nbd0"));
        assert!(!NbdUri::is_meant_by("nbd.img"));
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(
            host in prop_oneof!["[a-z0-9.-]{1,20}", "[0-9a-f]{1,4}::[0-9a-f]{1,4}"],
            port in 1u16..,
            export in "[^\0]{0,40}",
            socket in "[^\0]{1,40}",
            unix: bool,
            tls in proptest::option::of((proptest::option::of("[^\0]{1,9}"), proptest::option::of(".{1,9}"))),
        ) {
            let address = if unix { Address::Unix(socket.into()) } else { Address::Tcp { host, port } };
            let tls = tls.map(|(folder, hostname)| TlsParams { certificates: folder.map(PathBuf::from), hostname });
            let uri = NbdUri { address, export, tls };
            prop_assert_eq!(uri.to_string().parse(), Ok(uri));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(nbds?(\\+unix)?://)?.{0,40}(\\?.{0,20})?") {
            if let Ok(uri) = text.parse::<NbdUri>() {
                prop_assert_eq!(uri.to_string().parse(), Ok(uri));
            }
        }
    }
}
