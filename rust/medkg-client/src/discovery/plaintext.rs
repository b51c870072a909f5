//! What a name or a registry leads to is held to the same rule as what is written down: plaintext stays on the loopback
//! unless it is allowed.

use std::time::Duration;

use crate::config::Address;

/// What was found, without addresses at which texts could be read on the way; a problem if there is nothing else.
pub(crate) fn held_back(found: (Vec<Address>, Duration)) -> Result<(Vec<Address>, Duration), String> {
    let (addresses, holds) = found;
    let (open, kept): (Vec<_>, Vec<_>) = addresses.into_iter().partition(Address::is_open_to_others);
    let names: Vec<&str> = open.iter().map(Address::as_str).collect();
    let names = names.join(", ");
    match (open.is_empty(), kept.is_empty()) {
        (false, true) => Err(format!(
            "{names}: would send texts in plaintext to another machine; let it serve TLS, or set allow_plaintext if the \
             network itself is trusted"
        )),
        (false, false) => {
            tracing::warn!(
                addresses = names,
                "servers that are reached in plaintext only are left out"
            );
            Ok((kept, holds))
        }
        (true, _) => Ok((kept, holds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_to_other_machines_is_left_out() {
        let found = |texts: &[&str]| {
            let addresses = texts.iter().map(|text| Address::try_new(text).unwrap()).collect();
            let kept = held_back((addresses, Duration::MAX))?.0;
            Ok::<_, String>(
                kept.iter()
                    .map(|address| address.as_str().to_owned())
                    .collect::<Vec<_>>(),
            )
        };
        let near = ["https://10.0.0.1:1", "http://127.0.0.1:1", "http://[::1]:1"];
        assert_eq!(found(&near).unwrap(), near);
        assert_eq!(
            found(&["http://10.0.0.1:1", "https://10.0.0.2:1"]).unwrap(),
            ["https://10.0.0.2:1"]
        );
        assert!(found(&["http://10.0.0.1:1"]).unwrap_err().contains("allow_plaintext"));
        assert!(found(&[]).unwrap().is_empty());
    }
}
