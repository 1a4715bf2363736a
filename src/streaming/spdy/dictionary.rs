//! The zlib dictionary with which both sides of a SPDY/3 connection begin (SPDY protocol, draft 3.1, section 2.6.10.1). It is
//! part of the wire format: a different byte makes every header block unreadable.

/// Words that the dictionary has with their lengths before them, as four bytes each.
const WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

/// What follows them as it is.
const TAIL: &str = "\
    100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Au\
    thoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidd\
    en404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr Ma\
    y Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,imag\
    e/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicpri\
    vatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The length of the dictionary in bytes.
const LENGTH: usize = 1423;

/// The dictionary.
pub(super) static DICTIONARY: [u8; LENGTH] = assemble();

/// Its Adler-32 checksum, by which a zlib header names it.
pub(super) const ID: u32 = 0xe3c6_a7c2;

const fn assemble() -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    let mut at = 0;
    let mut word = 0;
    while word < WORDS.len() {
        let text = WORDS[word].as_bytes();
        // The lengths are below 256, so three of their bytes stay zero.
        assert!(text.len() < 256);
        bytes[at + 3] = text.len().to_le_bytes()[0];
        at = put(&mut bytes, at + 4, text);
        word += 1;
    }
    at = put(&mut bytes, at, TAIL.as_bytes());
    assert!(at == LENGTH);
    bytes
}

const fn put(bytes: &mut [u8; LENGTH], mut at: usize, text: &[u8]) -> usize {
    let mut next = 0;
    while next < text.len() {
        bytes[at] = text[next];
        at += 1;
        next += 1;
    }
    at
}
