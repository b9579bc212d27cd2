//! One auto scaling group behind a port: what is asked is done, whether or not its answer arrives.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

pub(super) const GROUP: &str = "muster-build";
/// How many a group may protect in one call.
const PROTECT_MAX: usize = 50;

/// An instance: its id, its state, and whether it is protected.
pub(super) type Instance = (String, &'static str, bool);
type Parameters = BTreeMap<String, String>;
type Refusal = (&'static str, String);

#[derive(Default)]
pub(super) struct Group {
    pub(super) desired: usize,
    pub(super) min: usize,
    pub(super) max: usize,
    pub(super) instances: Vec<Instance>,
    /// New instances are protected.
    pub(super) protects: bool,
    /// Actions that the caller is not allowed.
    pub(super) refused: Vec<&'static str>,
    /// Description, status and message of each, newest first.
    pub(super) activities: Vec<(&'static str, &'static str, &'static str)>,
    launched: usize,
    /// Answers, and requests, still to be lost.
    lost: BTreeMap<&'static str, u32>,
    dropped: BTreeMap<&'static str, u32>,
    asked: Vec<String>,
}

pub(super) struct Cloud {
    pub(super) endpoint: String,
    group: Arc<Mutex<Group>>,
}

impl Cloud {
    /// Starts a group that is to have so many instances.
    pub(super) async fn start(desired: usize) -> Self {
        let group = Arc::new(Mutex::new(Group {
            desired,
            max: 500,
            protects: true,
            ..Group::default()
        }));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let served = Arc::clone(&group);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let group = Arc::clone(&served);
                tokio::spawn(async move {
                    let service = service_fn(|request| answer(Arc::clone(&group), request));
                    let http = hyper::server::conn::http1::Builder::new();
                    // One whose answer is lost ends with an error.
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { endpoint, group }
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut Group)) {
        change(&mut self.group.lock().unwrap());
    }

    fn read<T>(&self, read: impl FnOnce(&Group) -> T) -> T {
        read(&self.group.lock().unwrap())
    }

    pub(super) fn lose(&self, action: &'static str, answers: u32) {
        self.set(|group| group.lost = [(action, answers)].into());
    }

    pub(super) fn drop_requests(&self, action: &'static str, requests: u32) {
        self.set(|group| group.dropped = [(action, requests)].into());
    }

    pub(super) fn interrupt(&self, id: &str) {
        self.set(|group| group.instance(id).unwrap().1 = "Terminating");
    }

    /// Lets the group do what it does by itself, to the end.
    pub(super) fn pass(&self) {
        self.set(|group| {
            group.instances.retain(|one| one.1 != "Terminating");
            while group.counted() < group.desired {
                group.launched += 1;
                let id = format!("i-{:04}", group.launched);
                let protects = group.protects;
                group.instances.push((id, "Pending", protects));
            }
            for one in &mut group.instances {
                if one.1 == "Pending" {
                    one.1 = "InService";
                }
            }
            let mut surplus = group.counted() - group.desired;
            let free = |one: &&mut Instance| one.1 == "InService" && !one.2;
            for one in group.instances.iter_mut().filter(free) {
                if surplus > 0 {
                    one.1 = "Terminating";
                    surplus -= 1;
                }
            }
        });
    }

    pub(super) fn desired(&self) -> usize {
        self.read(|group| group.desired)
    }

    pub(super) fn launched(&self) -> usize {
        self.read(|group| group.launched)
    }

    pub(super) fn there(&self) -> Vec<String> {
        let ids = |group: &Group| group.instances.iter().map(|one| one.0.clone()).collect();
        self.read(ids)
    }

    /// Counts how often something was asked, and arrived.
    pub(super) fn asked(&self, action: &str) -> usize {
        self.read(|group| group.asked.iter().filter(|one| *one == action).count())
    }
}

impl Group {
    fn instance(&mut self, id: &str) -> Option<&mut Instance> {
        self.instances.iter_mut().find(|one| one.0 == id)
    }

    fn counted(&self) -> usize {
        let counts = |one: &&Instance| matches!(one.1, "Pending" | "InService");
        self.instances.iter().filter(counts).count()
    }

    fn act(&mut self, action: &str, of: &Parameters) -> Result<String, Refusal> {
        let invalid = |text: &str| ("ValidationError", text.to_owned());
        if self.refused.contains(&action) {
            return Err(("AccessDenied", format!("not allowed: {action}")));
        }
        match action {
            "DescribeAutoScalingGroups" => Ok(self.described()),
            "DescribeScalingActivities" => Ok(self.happened()),
            "SetDesiredCapacity" => {
                let desired = of["DesiredCapacity"].parse().unwrap();
                if !(self.min..=self.max).contains(&desired) {
                    return Err(invalid("outside of min and max size"));
                }
                self.desired = desired;
                Ok(String::new())
            }
            "TerminateInstanceInAutoScalingGroup" => {
                let lowers = of["ShouldDecrementDesiredCapacity"] == "true";
                if lowers && self.desired == self.min {
                    return Err(invalid("this would violate the group's min size"));
                }
                let found = self.instance(&of["InstanceId"]);
                // Also of one that is ending already: the worst that could be.
                found.ok_or_else(|| invalid("no such instance"))?.1 = "Terminating";
                self.desired -= usize::from(lowers);
                Ok(String::new())
            }
            "SetInstanceProtection" => {
                let ids = of.iter().filter(|(name, _)| name.contains("member"));
                let ids: Vec<&String> = ids.map(|(_, id)| id).collect();
                if ids.len() > PROTECT_MAX {
                    return Err(invalid("too many"));
                }
                for id in ids {
                    match self.instance(id) {
                        Some(one) if one.1 != "Pending" => one.2 = true,
                        _ => return Err(invalid("not in service")),
                    }
                }
                Ok(String::new())
            }
            other => panic!("{other}"),
        }
    }

    fn described(&self) -> String {
        let mut text = format!(
            "<AutoScalingGroups><member><AutoScalingGroupName>{GROUP}</AutoScalingGroupName>\
             <MinSize>{}</MinSize><MaxSize>{}</MaxSize><DesiredCapacity>{}</DesiredCapacity>\
             <Tags><member><Key>muster:coordinator</Key><Value>{}</Value></member></Tags><Instances>",
            self.min,
            self.max,
            self.desired,
            super::HOME
        );
        for (id, state, protected) in &self.instances {
            write!(
                text,
                "<member><InstanceId>{id}</InstanceId><LifecycleState>{state}</LifecycleState>\
                 <ProtectedFromScaleIn>{protected}</ProtectedFromScaleIn></member>"
            )
            .unwrap();
        }
        text + "</Instances></member></AutoScalingGroups>"
    }

    fn happened(&self) -> String {
        let mut text = "<Activities>".to_owned();
        for (nth, (description, status, message)) in self.activities.iter().enumerate() {
            write!(
                text,
                "<member><ActivityId>a{nth}</ActivityId><Description>{description}</Description>\
                 <StartTime>2999-01-01T00:00:00Z</StartTime><StatusCode>{status}</StatusCode>\
                 <StatusMessage>{message}</StatusMessage></member>"
            )
            .unwrap();
        }
        text + "</Activities>"
    }
}

/// Takes one off what is still to be lost of an action.
fn is_lost(left: &mut BTreeMap<&'static str, u32>, action: &str) -> bool {
    let left = left.get_mut(action).filter(|left| **left > 0);
    left.map(|left| *left -= 1).is_some()
}

async fn answer(
    group: Arc<Mutex<Group>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let lost = || std::io::Error::other("the line is cut");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let pairs = body.split('&').filter_map(|pair| pair.split_once('='));
    let of: Parameters = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let action = of["Action"].clone();
    let mut group = group.lock().unwrap();
    if is_lost(&mut group.dropped, &action) {
        return Err(lost());
    }
    group.asked.push(action.clone());
    let done = group.act(&action, &of);
    if is_lost(&mut group.lost, &action) {
        return Err(lost());
    }
    let (status, text) = match done {
        Ok(result) => {
            let text = format!(
                "<{action}Response><{action}Result>{result}</{action}Result></{action}Response>"
            );
            (200, text)
        }
        Err((code, message)) => {
            let error =
                format!("<Type>Sender</Type><Code>{code}</Code><Message>{message}</Message>");
            (
                400,
                format!("<ErrorResponse><Error>{error}</Error></ErrorResponse>"),
            )
        }
    };
    let answer = Response::builder().status(status);
    Ok(answer.body(Full::new(Bytes::from(text))).unwrap())
}
