//! What an EC2 instance signs to prove which one it is.
//!
//! The instance signs a request for `sts:GetCallerIdentity` with the credentials of its instance
//! profile and hands the signature over; whoever doubts it sends that request to STS, which answers
//! with the instance's id, since EC2 names the session of these credentials after it. The idea, and
//! the header that ties a signature to one receiver, are those of HashiCorp Vault's AWS login.

use crate::Fingerprint;

/// Name of the signed header that says for whom the proof is: a receiver must not be able to use it
/// elsewhere.
pub const RECEIVER_HEADER: &str = "x-muster-coordinator";
/// Body of the request.
pub const BODY: &str = "Action=GetCallerIdentity&Version=2011-06-15";
/// `Content-Type` of the body.
pub const CONTENT_TYPE: &str = "application/x-www-form-urlencoded; charset=utf-8";
/// Longest value of a header of the request; session tokens of AWS have some hundred bytes.
pub const HEADER_BYTES_MAX: usize = 8 * 1024;
const REGION_BYTES_MAX: usize = 40;

/// Gives the host of STS in a region, such as `sts.eu-west-1.amazonaws.com`.
///
/// `None` if that is no region's name: it becomes a part of a host's. All regions end with a number,
/// which tells them from their zones, such as `eu-west-1a`.
#[must_use]
pub fn host(region: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let number = region.rsplit_once('-').map(|(_, number)| number);
    let numbered = number.is_some_and(|number| {
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    });
    let usual = (1..=REGION_BYTES_MAX).contains(&region.len())
        && region.bytes().all(plain)
        && !region.starts_with('-')
        && numbered;
    let domain = match region.starts_with("cn-") {
        true => "amazonaws.com.cn",
        false => "amazonaws.com",
    };
    usual.then(|| format!("sts.{region}.{domain}"))
}

/// Gives the value of [`RECEIVER_HEADER`] for a coordinator.
#[must_use]
pub fn receiver(ca: Fingerprint) -> String {
    ca.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regions_name_leads_to_its_own_host_and_to_no_other() {
        assert_eq!(
            host("eu-west-1").as_deref(),
            Some("sts.eu-west-1.amazonaws.com")
        );
        assert_eq!(
            host("cn-north-1").as_deref(),
            Some("sts.cn-north-1.amazonaws.com.cn")
        );
        for wrong in [
            "",
            "-x-1",
            "x-",
            "eu-west",
            "eu-west-1a",
            "1",
            "evil.example/",
            "a.b",
            "EU",
            "x@y",
            "x:1",
        ] {
            assert_eq!(host(wrong), None, "{wrong}");
        }
        assert_eq!(host(&format!("{}-1", "x".repeat(39))), None);
    }
}
