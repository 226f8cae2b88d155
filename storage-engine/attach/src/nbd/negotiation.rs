//! The option haggling of NBD's fixed newstyle handshake, as a synchronous value: options in,
//! reply bytes and the next step out. Never touches a socket.

use super::protocol::{
    BLOCK_SIZE_MIN, BLOCK_SIZE_PREFERRED, EXPORT_CAN_MULTI_CONN, EXPORT_HAS_FLAGS,
    EXPORT_READ_ONLY, EXPORT_SEND_DF, EXPORT_SEND_FAST_ZERO, EXPORT_SEND_FLUSH, EXPORT_SEND_FUA,
    EXPORT_SEND_TRIM, EXPORT_SEND_WRITE_ZEROES, HANDSHAKE_FIXED_NEWSTYLE, HANDSHAKE_NO_ZEROES,
    INFO_BLOCK_SIZE, INFO_DESCRIPTION, INFO_EXPORT, INFO_NAME, InfoRequest, MAGIC_INIT,
    MAGIC_OPTION, OPT_ABORT, OPT_EXPORT_NAME, OPT_GO, OPT_INFO, OPT_LIST, OPT_STARTTLS,
    OPT_STRUCTURED_REPLY, PAYLOAD_LEN_MAX, ProtocolError, REP_ACK, REP_ERR_INVALID,
    REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_INFO, REP_SERVER, put_option_reply,
};

/// What is offered to clients, under its name and under the empty one.
#[derive(Clone, Debug)]
pub struct Export {
    pub name: String,
    pub description: String,
    pub size: u64,
    pub read_only: bool,
}

impl Export {
    /// Transmission flags. FAST_ZERO holds always: zeroes are one log entry, never data.
    /// CAN_MULTI_CONN too: whatever was acknowledged on one connection is on a majority of disks.
    pub fn flags(&self, structured_replies: bool) -> u16 {
        let mut common = EXPORT_HAS_FLAGS | EXPORT_SEND_FLUSH | EXPORT_CAN_MULTI_CONN;
        if structured_replies {
            common |= EXPORT_SEND_DF;
        }
        if self.read_only {
            return common | EXPORT_READ_ONLY;
        }
        common
            | EXPORT_SEND_FUA
            | EXPORT_SEND_TRIM
            | EXPORT_SEND_WRITE_ZEROES
            | EXPORT_SEND_FAST_ZERO
    }

    fn is_named(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }
}

/// What the connection does after an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Waits for the next option.
    Continue,
    /// Goes on with commands.
    Transmit,
    /// Ends once the reply is sent.
    Close,
}

/// One client's haggling so far.
#[derive(Debug)]
pub struct Negotiation {
    no_zeroes: bool,
    structured_replies: bool,
}

impl Negotiation {
    /// The server's first bytes.
    pub fn greeting() -> [u8; 18] {
        let mut out = [0; 18];
        out[..8].copy_from_slice(&MAGIC_INIT.to_be_bytes());
        out[8..16].copy_from_slice(&MAGIC_OPTION.to_be_bytes());
        let flags = HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES;
        out[16..].copy_from_slice(&flags.to_be_bytes());
        out
    }

    /// Takes the client's answer to the greeting.
    pub fn new(client_flags: u32) -> Result<Self, ProtocolError> {
        let known = u32::from(HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES);
        if client_flags & !known != 0 {
            return Err(ProtocolError::ClientFlags(client_flags));
        }
        let no_zeroes = client_flags & u32::from(HANDSHAKE_NO_ZEROES) != 0;
        Ok(Self { no_zeroes, structured_replies: false })
    }

    pub fn structured_replies(&self) -> bool {
        self.structured_replies
    }

    /// Answers one option.
    pub fn on_option(
        &mut self,
        export: &Export,
        option: u32,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Step {
        match option {
            OPT_EXPORT_NAME => return self.on_export_name(export, data, out),
            OPT_GO | OPT_INFO => return self.on_info(export, option, data, out),
            OPT_ABORT => {
                put_option_reply(out, option, REP_ACK, &[]);
                return Step::Close;
            }
            OPT_LIST if data.is_empty() => {
                put_option_reply(out, option, REP_SERVER, &list_entry(export));
                put_option_reply(out, option, REP_ACK, &[]);
            }
            OPT_STRUCTURED_REPLY if data.is_empty() => {
                self.structured_replies = true;
                put_option_reply(out, option, REP_ACK, &[]);
            }
            OPT_LIST | OPT_STRUCTURED_REPLY => {
                put_option_reply(out, option, REP_ERR_INVALID, b"this option takes no data");
            }
            OPT_STARTTLS => {
                let message = b"no TLS here: this is a Unix socket for its owner only";
                put_option_reply(out, option, REP_ERR_UNSUP, message);
            }
            _ => put_option_reply(out, option, REP_ERR_UNSUP, b"option not supported"),
        }
        Step::Continue
    }

    /// The old way in: has no error reply, so an unknown name ends the connection.
    fn on_export_name(&self, export: &Export, name: &[u8], out: &mut Vec<u8>) -> Step {
        if !export.is_named(name) {
            return Step::Close;
        }
        out.extend_from_slice(&export.size.to_be_bytes());
        out.extend_from_slice(&export.flags(self.structured_replies).to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        Step::Transmit
    }

    fn on_info(&self, export: &Export, option: u32, data: &[u8], out: &mut Vec<u8>) -> Step {
        let Some(request) = InfoRequest::parse(data) else {
            put_option_reply(out, option, REP_ERR_INVALID, b"lengths in the option do not add up");
            return Step::Continue;
        };
        if !export.is_named(request.name) {
            let message = format!("no such export; this server has {:?}", export.name);
            put_option_reply(out, option, REP_ERR_UNKNOWN, message.as_bytes());
            return Step::Continue;
        }
        let mut info = INFO_EXPORT.to_be_bytes().to_vec();
        info.extend_from_slice(&export.size.to_be_bytes());
        info.extend_from_slice(&export.flags(self.structured_replies).to_be_bytes());
        put_option_reply(out, option, REP_INFO, &info);
        // Sent unasked too: the limits hold whether or not the client asked for them.
        let mut info = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [BLOCK_SIZE_MIN, BLOCK_SIZE_PREFERRED, PAYLOAD_LEN_MAX] {
            info.extend_from_slice(&size.to_be_bytes());
        }
        put_option_reply(out, option, REP_INFO, &info);
        for (kind, text) in [(INFO_NAME, &export.name), (INFO_DESCRIPTION, &export.description)] {
            if request.wanted.contains(&kind) {
                let mut info = kind.to_be_bytes().to_vec();
                info.extend_from_slice(text.as_bytes());
                put_option_reply(out, option, REP_INFO, &info);
            }
        }
        put_option_reply(out, option, REP_ACK, &[]);
        if option == OPT_GO { Step::Transmit } else { Step::Continue }
    }
}

fn list_entry(export: &Export) -> Vec<u8> {
    let mut entry = (export.name.len() as u32).to_be_bytes().to_vec();
    entry.extend_from_slice(export.name.as_bytes());
    entry.extend_from_slice(export.description.as_bytes());
    entry
}

#[cfg(test)]
mod tests;
