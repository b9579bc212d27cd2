//! The Auto Scaling API, as far as it is needed.

use std::time::{Duration, SystemTime};

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, Region};
use aws_sdk_autoscaling::Client;
use aws_sdk_autoscaling::config::Builder;
use aws_sdk_autoscaling::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_autoscaling::types::{Activity, ScalingActivityStatusCode};
use tokio::sync::OnceCell;

use super::group::{Failure, Group, Instance, Stage};
use crate::causes;
use crate::pool::provider::Error;

/// Tag of a group that says whose it is.
pub(super) const OWNER_TAG: &str = "muster:coordinator";
const CALL_LIMIT: Duration = Duration::from_secs(30);
const TRY_LIMIT: Duration = Duration::from_secs(10);
const TRIES: u32 = 3;
/// Instances that one call may protect.
const PROTECT_MAX: usize = 50;
/// Latest launches that are looked at.
const ACTIVITIES: i32 = 50;

/// One group.
#[derive(Debug)]
pub(super) struct Api {
    group: String,
    region: String,
    client: OnceCell<Client>,
}

impl Api {
    pub(super) fn new(group: &str, region: &str) -> Self {
        Self {
            group: group.to_owned(),
            region: region.to_owned(),
            client: OnceCell::new(),
        }
    }

    /// Asks at `endpoint`, whoever the environment says is there.
    #[cfg(test)]
    pub(super) async fn at(group: &str, region: &str, endpoint: &str) -> Self {
        let credentials =
            aws_sdk_autoscaling::config::Credentials::new("AKID", "secret", None, None, "test");
        let api = Self::new(group, region);
        let found = aws_config::defaults(BehaviorVersion::latest())
            .endpoint_url(endpoint)
            .credentials_provider(credentials);
        let client = made(&api.region, found).await;
        api.client.get_or_init(async || client).await;
        api
    }

    /// Credentials and endpoints are found where AWS's own programs find them.
    async fn client(&self) -> &Client {
        let found = || aws_config::defaults(BehaviorVersion::latest());
        let make = async || made(&self.region, found()).await;
        self.client.get_or_init(make).await
    }

    /// # Errors
    /// There is no such group, or it cannot be asked for.
    pub(super) async fn describe(&self) -> Result<Group, Error> {
        let asked = self
            .client()
            .await
            .describe_auto_scaling_groups()
            .auto_scaling_group_names(&self.group)
            .send()
            .await;
        let answer = asked.map_err(|error| said("DescribeAutoScalingGroups", &error))?;
        let found = answer.auto_scaling_groups().first().ok_or_else(|| {
            Error::Refused(format!(
                "there is no auto scaling group {:?} in {}",
                self.group, self.region
            ))
        })?;
        let number = |number: Option<i32>| u32::try_from(number.unwrap_or_default()).unwrap_or(0);
        let tags = found.tags().iter();
        let mut tags = tags.filter(|tag| tag.key() == Some(OWNER_TAG));
        Ok(Group {
            desired: number(found.desired_capacity()),
            min: number(found.min_size()),
            max: number(found.max_size()),
            suspended: found
                .suspended_processes()
                .iter()
                .filter_map(|process| Some(process.process_name()?.into()))
                .collect(),
            coordinator: tags.find_map(|tag| tag.value()).map(Into::into),
            instances: found
                .instances()
                .iter()
                .filter_map(|instance| {
                    let state = instance.lifecycle_state();
                    Some(Instance {
                        id: instance.instance_id()?.into(),
                        stage: Stage::parse(state.map_or("", |state| state.as_str())),
                        protected: instance.protected_from_scale_in().unwrap_or(false),
                    })
                })
                .collect(),
        })
    }

    /// Sets how many instances the group is to have. The number is absolute: a repeat changes nothing.
    pub(super) async fn set_desired(&self, desired: u32) -> Result<(), Error> {
        let asked = self
            .client()
            .await
            .set_desired_capacity()
            .auto_scaling_group_name(&self.group)
            .desired_capacity(i32::try_from(desired).unwrap_or(i32::MAX))
            .honor_cooldown(false)
            .send()
            .await;
        asked
            .map(drop)
            .map_err(|error| said("SetDesiredCapacity", &error))
    }

    /// Ends one instance; with `lowers` the group's desired capacity becomes one less. It is asked for
    /// once: a repeat whose first try has arrived could take off two, so whoever got no answer has to
    /// look at the group again.
    pub(super) async fn terminate(&self, instance: &str, lowers: bool) -> Result<(), Error> {
        let asked = self
            .client()
            .await
            .terminate_instance_in_auto_scaling_group()
            .instance_id(instance)
            .should_decrement_desired_capacity(lowers)
            .customize()
            .config_override(Builder::new().retry_config(RetryConfig::disabled()))
            .send()
            .await;
        asked
            .map(drop)
            .map_err(|error| said("TerminateInstanceInAutoScalingGroup", &error))
    }

    /// Keeps the group from choosing these when it shrinks. They must be in service or in standby.
    pub(super) async fn protect(&self, instances: &[Box<str>]) -> Result<(), Error> {
        for chunk in instances.chunks(PROTECT_MAX) {
            let ids = chunk.iter().map(|id| id.to_string()).collect();
            let asked = self
                .client()
                .await
                .set_instance_protection()
                .auto_scaling_group_name(&self.group)
                .set_instance_ids(Some(ids))
                .protected_from_scale_in(true)
                .send()
                .await;
            asked.map_err(|error| said("SetInstanceProtection", &error))?;
        }
        Ok(())
    }

    /// Gives the latest launches that have failed, oldest first, each with its id and when it ended.
    pub(super) async fn failures(&self) -> Result<Vec<(String, SystemTime, Failure)>, Error> {
        let asked = self
            .client()
            .await
            .describe_scaling_activities()
            .auto_scaling_group_name(&self.group)
            .max_records(ACTIVITIES)
            .send()
            .await;
        let answer = asked.map_err(|error| said("DescribeScalingActivities", &error))?;
        let failed = |activity: &&Activity| {
            let status = activity.status_code();
            matches!(
                status,
                Some(ScalingActivityStatusCode::Failed | ScalingActivityStatusCode::Cancelled)
            )
        };
        // Ends that fail or are called off are activities too.
        let launches = |activity: &&Activity| {
            let description = activity.description();
            description.is_some_and(|text| text.starts_with("Launching"))
        };
        let failures = answer.activities().iter().rev();
        let failures = failures.filter(launches).filter(failed);
        let failures = failures.filter_map(|activity| {
            let message = activity.status_message().or(activity.description());
            let ended = activity.end_time().or(activity.start_time())?;
            Some((
                activity.activity_id()?.to_owned(),
                SystemTime::try_from(*ended).ok()?,
                Failure {
                    message: message.unwrap_or("a launch has failed").into(),
                },
            ))
        });
        Ok(failures.collect())
    }
}

/// Makes a client with what was found.
async fn made(region: &str, found: ConfigLoader) -> Client {
    let timeouts = TimeoutConfig::builder()
        .operation_timeout(CALL_LIMIT)
        .operation_attempt_timeout(TRY_LIMIT)
        .build();
    let config = found
        .region(Region::new(region.to_owned()))
        .retry_config(RetryConfig::standard().with_max_attempts(TRIES))
        .timeout_config(timeouts)
        .load()
        .await;
    Client::new(&config)
}

/// Says what went wrong: what the service has refused will be refused again.
fn said<E>(call: &str, error: &SdkError<E>) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let refusal = error.as_service_error();
    let Some((code, refusal)) = refusal.and_then(|said| Some((said.code()?, said))) else {
        // Nothing came, or not from the service, or it cannot be read: what was asked may be done.
        let status = error.raw_response().map(|answer| answer.status().as_u16());
        let status = status.map_or_else(String::new, |status| format!(" (HTTP {status})"));
        return Error::Unclear(format!("{call} failed{status}: {}", causes::chain(error)));
    };
    let message = refusal.message().unwrap_or_default();
    let text = format!("{call} failed with {code}: {message}");
    let passes = matches!(
        code,
        "ScalingActivityInProgress"
            | "ResourceContention"
            | "Throttling"
            | "ThrottlingException"
            | "RequestLimitExceeded"
    );
    let server = error
        .raw_response()
        .is_some_and(|answer| answer.status().is_server_error());
    if passes || server {
        Error::Unclear(text)
    } else {
        Error::Refused(text)
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_autoscaling::config::http::HttpResponse;
    use aws_sdk_autoscaling::error::{ConnectorError, ErrorMetadata};
    use aws_sdk_autoscaling::operation::set_desired_capacity::SetDesiredCapacityError;

    use super::*;

    fn answered(status: u16, error: SetDesiredCapacityError) -> SdkError<SetDesiredCapacityError> {
        let answer = HttpResponse::new(status.try_into().unwrap(), "".into());
        SdkError::service_error(error, answer)
    }

    fn with_code(status: u16, code: &str) -> SdkError<SetDesiredCapacityError> {
        let said = ErrorMetadata::builder().code(code).message("no").build();
        answered(status, SetDesiredCapacityError::generic(said))
    }

    #[test]
    fn only_what_the_service_itself_says_is_a_refusal() {
        let refused = said("SetDesiredCapacity", &with_code(403, "AccessDenied"));
        let Error::Refused(text) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(text, "SetDesiredCapacity failed with AccessDenied: no");
        for (status, code) in [(400, "Throttling"), (500, "InternalFailure")] {
            let told = said("SetDesiredCapacity", &with_code(status, code));
            assert!(matches!(told, Error::Unclear(_)), "{told:?}");
        }
        let garbage = answered(200, SetDesiredCapacityError::unhandled("no XML"));
        let told = said("SetDesiredCapacity", &garbage);
        let Error::Unclear(text) = told else {
            panic!("{told:?}")
        };
        assert!(
            text.starts_with("SetDesiredCapacity failed (HTTP 200): ") && text.ends_with("no XML"),
            "{text}"
        );
    }

    #[test]
    fn a_failure_is_told_with_its_causes_and_without_the_insides_of_programs() {
        let cut = ConnectorError::io("the line was cut".into());
        let error = SdkError::<SetDesiredCapacityError>::dispatch_failure(cut);
        let told = said("SetDesiredCapacity", &error).to_string();
        assert!(told.ends_with("the line was cut"), "{told}");
        assert!(!told.contains(['{', '(']), "{told}");
    }
}
