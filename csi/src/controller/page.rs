//! What the list RPCs share: how long a page is, and the token with which the next one begins. A
//! token names the last entry of a page, so that pages stay right while entries come and go.

use curve_types::ClusterId;

use crate::error::CsiError;

/// Entries per page where the request does not say; well below gRPC's 4 MiB per message.
pub const PAGE: u32 = 1000;

/// Everything up to and including this has been listed. `CLUSTER_UUID/NAME` on the wire.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    pub cluster: ClusterId,
    pub name: String,
}

impl Token {
    /// `rpc` is the one whose tokens are accepted.
    pub fn parse(rpc: &'static str, text: &str) -> Result<Option<Self>, CsiError> {
        if text.is_empty() {
            return Ok(None);
        }
        let error = || CsiError::Token { rpc, token: text.to_owned() };
        let (cluster, name) = text.split_once('/').ok_or_else(error)?;
        let cluster = cluster.parse().map_err(|_| error())?;
        Ok(Some(Self { cluster, name: name.to_owned() }))
    }

    /// For the page behind an entry of that name.
    pub fn after(cluster: ClusterId, name: &str) -> String {
        format!("{cluster}/{name}")
    }
}

/// Where a page's entries of one cluster begin; `None` if those before the token were all of them.
pub fn start(token: Option<&Token>, cluster: ClusterId) -> Option<&str> {
    match token {
        Some(token) if cluster < token.cluster => None,
        Some(token) if cluster == token.cluster => Some(&token.name),
        _ => Some(""),
    }
}

/// Entries of the page that a request asks for.
pub fn limit(max_entries: i32) -> Result<u32, CsiError> {
    match u32::try_from(max_entries) {
        Ok(0) => Ok(PAGE),
        Ok(limit) => Ok(limit.min(PAGE)),
        Err(_) => Err(CsiError::invalid("max_entries", "is negative")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_garbage_is_refused() {
        let cluster = ClusterId::random();
        let text = Token::after(cluster, "pvc/odd name");
        let token = Token::parse("ListVolumes", &text).expect("valid");
        assert_eq!(token, Some(Token { cluster, name: "pvc/odd name".to_owned() }));
        assert_eq!(Token::parse("ListVolumes", "").expect("none"), None);
        for text in ["x", "7", "a/b", "invalid-token"] {
            let error = Token::parse("ListVolumes", text);
            assert!(matches!(error, Err(CsiError::Token { .. })), "{text}");
        }
    }
}
