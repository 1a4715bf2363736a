//! The CRI v1 contract, generated from `api.proto` (package `runtime.v1`).
//!
//! `tests/bootstrap.rs` regenerates the code and compares. The one hand-written piece is a `Debug` for
//! [`runtime::v1::AuthConfig`] that never prints a secret.

pub mod cricket;
pub mod runtime;

use std::fmt;

use runtime::v1::AuthConfig;

impl fmt::Debug for AuthConfig {
    /// Shows which fields are set, never what the secret ones hold.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |secret: &str| if secret.is_empty() { "" } else { "<redacted>" };
        f.debug_struct("AuthConfig")
            .field("username", &shown(&self.username))
            .field("password", &shown(&self.password))
            .field("auth", &shown(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &shown(&self.identity_token))
            .field("registry_token", &shown(&self.registry_token))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::v1::{ImageSpec, KeyValue, PullImageRequest};

    #[test]
    fn a_pull_request_prints_no_secret() {
        let auth = AuthConfig {
            username: "canary-user".into(),
            password: "canary-password".into(),
            auth: "canary-auth".into(),
            server_address: "registry.example".into(),
            identity_token: "canary-identity".into(),
            registry_token: "canary-registry".into(),
        };
        let request = PullImageRequest {
            image: Some(ImageSpec { image: "busybox".into(), ..Default::default() }),
            auth: Some(auth),
            sandbox_config: None,
        };
        let text = format!("{request:?}");
        assert!(!text.contains("canary"), "{text}");
        assert!(text.contains("registry.example"), "{text}");
    }

    #[test]
    fn an_environment_value_need_not_be_utf8() {
        let pair = KeyValue { key: "K".into(), value: vec![0xff, 0xfe] };
        let wire = prost::Message::encode_to_vec(&pair);
        assert_eq!(<KeyValue as prost::Message>::decode(&*wire).expect("bytes are legal"), pair);
    }
}
