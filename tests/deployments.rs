//! What is deployed is what there is: manifests parse and fit together, and every setting that they name is one that the
//! proxy takes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use cachefence::config::{Config, Contract};
use serde::Deserialize;
use serde_json::{Value, json};

fn config(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All documents of a file.
fn documents(name: &str) -> Vec<Value> {
    let text = read(&config(name));
    let documents = serde_norway::Deserializer::from_str(&text);
    documents
        .map(|document| Value::deserialize(document).unwrap_or_else(|error| panic!("{name}: {error}")))
        .collect()
}

#[test]
fn every_yaml_file_is_yaml() {
    let mut seen = 0;
    for directory in ["", "kubernetes"] {
        for entry in std::fs::read_dir(config(directory)).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|end| end == "yaml" || end == "yml") {
                let name = path.strip_prefix(config("")).expect("inside").to_string_lossy().into_owned();
                assert!(documents(&name).iter().all(Value::is_object), "{name}");
                seen += 1;
            }
        }
    }
    assert!(seen >= 5, "{seen}");
}

const MANIFESTS: [&str; 2] = ["kubernetes/sidecar.yaml", "kubernetes/strict.yaml"];

fn of_kind<'a>(documents: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    documents.iter().filter(move |document| document["kind"] == kind)
}

fn workload(documents: &[Value]) -> &Value {
    of_kind(documents, "StatefulSet").next().expect("a workload")
}

/// The proxy's container, wherever it is.
fn proxy(documents: &[Value]) -> &Value {
    let pod = &workload(documents)["spec"]["template"]["spec"];
    let containers =
        ["initContainers", "containers"].iter().filter_map(|list| pod[list].as_array()).flatten();
    containers.clone().find(|container| container["name"] == "cachefence").expect("the proxy")
}

/// Whether all labels of the first are among the second's.
fn selects(selector: &Value, labels: &Value) -> bool {
    selector
        .as_object()
        .is_some_and(|s| !s.is_empty() && s.iter().all(|(name, value)| labels[name] == *value))
}

#[test]
fn kubernetes_objects_fit_together() {
    for name in MANIFESTS {
        let documents = documents(name);
        for document in &documents {
            for field in ["/apiVersion", "/kind", "/metadata/name"] {
                assert!(document.pointer(field).is_some_and(Value::is_string), "{name}: {field}: {document}");
            }
        }
        let set = workload(&documents);
        let (template, namespace) = (&set["spec"]["template"], &set["metadata"]["namespace"]);
        let labels = &template["metadata"]["labels"];
        assert!(selects(&set["spec"]["selector"]["matchLabels"], labels), "{name}");
        assert!(
            of_kind(&documents, "Service")
                .any(|service| service["metadata"]["name"] == set["spec"]["serviceName"])
        );
        for service in of_kind(&documents, "Service") {
            assert!(selects(&service["spec"]["selector"], labels), "{name}: {service}");
        }
        for kind in ["PodDisruptionBudget", "NetworkPolicy"] {
            for document in of_kind(&documents, kind) {
                let selector = if kind == "NetworkPolicy" {
                    "/spec/podSelector/matchLabels"
                } else {
                    "/spec/selector/matchLabels"
                };
                assert!(
                    selects(document.pointer(selector).unwrap_or(&Value::Null), labels),
                    "{name}: {kind}"
                );
                assert_eq!(document["metadata"]["namespace"], *namespace);
            }
        }
        for volume in template["spec"]["volumes"].as_array().expect("volumes") {
            let map = &volume["configMap"]["name"];
            assert!(
                map.is_null()
                    || of_kind(&documents, "ConfigMap").any(|found| found["metadata"]["name"] == *map)
            );
        }
    }
}

#[test]
fn the_container_is_probed_where_the_proxy_answers_and_may_do_little() {
    for name in MANIFESTS {
        let documents = documents(name);
        let proxy = proxy(&documents);
        assert_eq!(proxy["args"], json!(["run"]), "{name}");
        for (probe, path) in
            [("livenessProbe", "/livez"), ("readinessProbe", "/readyz"), ("startupProbe", "/livez")]
        {
            let get = &proxy[probe]["httpGet"];
            assert_eq!(get["path"], path, "{name}: {probe}");
            let ports = proxy["ports"].as_array().expect("ports");
            let port = ports.iter().find(|port| port["name"] == get["port"]).expect("a port of that name");
            assert_eq!(port["containerPort"], 9187, "{name}");
        }
        let security = &proxy["securityContext"];
        assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]), "{name}");
        let pod = &workload(&documents)["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
        // Longer than what the proxy takes to stop.
        let settings = settings(&documents);
        let stop = settings.proxy.shutdown_delay + settings.proxy.shutdown_grace;
        assert!(pod["terminationGracePeriodSeconds"].as_u64() > Some(stop.as_secs()), "{name}");
    }
}

/// The settings that a container starts with: its map's file, and its environment.
fn settings(documents: &[Value]) -> Config {
    let map = of_kind(documents, "ConfigMap").next().expect("a map");
    let file = map["data"]["cachefence.toml"].as_str().expect("a file");
    let secret = &of_kind(documents, "Secret").next().expect("a secret")["stringData"];
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    for variable in proxy(documents)["env"].as_array().expect("variables") {
        let name = variable["name"].as_str().expect("a name").to_owned();
        let from = &variable["valueFrom"];
        let value = match (variable["value"].as_str(), from["secretKeyRef"]["key"].as_str()) {
            (Some(value), _) => known
                .iter()
                .fold(value.to_owned(), |value, (name, of)| value.replace(&format!("$({name})"), of)),
            (None, Some(key)) => {
                secret[key].as_str().unwrap_or_else(|| panic!("the secret has no {key}")).to_owned()
            }
            // What Kubernetes says of the pod.
            (None, None) if from["fieldRef"]["fieldPath"] == "status.podIP" => "10.1.2.3".into(),
            (None, None) => "1".into(),
        };
        assert!(!value.contains("$("), "{name}: {value}");
        known.insert(name, value);
    }
    load(file, known)
}

fn load(file: &str, variables: BTreeMap<String, String>) -> Config {
    // These two are the command line's.
    let variables = variables
        .into_iter()
        .filter(|(name, _)| !["CACHEFENCE_LOG", "CACHEFENCE_LOG_FORMAT"].contains(&name.as_str()));
    let variables = variables.map(|(name, value)| (name.into(), value.into()));
    Config::parse(None, file, variables).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_setting_of_a_manifest_is_one() {
    let sidecar = settings(&documents("kubernetes/sidecar.yaml"));
    assert_eq!(sidecar.postgres.slot, "app_1");
    assert_eq!(sidecar.admin.listen, "10.1.2.3:9187");
    assert_eq!(sidecar.sources.len(), 2);
    let strict = settings(&documents("kubernetes/strict.yaml"));
    assert_eq!(strict.postgres.contract, Contract::Strict);
    assert_eq!(
        (strict.postgres.slot.as_str(), strict.postgres.application_name.as_str()),
        ("cachefence_1", "cachefence_1")
    );
}

#[test]
fn a_setting_that_is_none_is_found() {
    let wrong = BTreeMap::from([("CACHEFENCE_PROXY__LISTENN".to_owned(), "x".to_owned())]);
    let loaded = std::panic::catch_unwind(|| load("", wrong));
    assert!(loaded.is_err());
}

#[test]
fn compose_names_files_and_settings_that_there_are() {
    let compose = documents("compose.yaml").remove(0);
    let services = compose["services"].as_object().expect("services");
    for (name, service) in services {
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let from = volume.as_str().and_then(|volume| volume.split(':').next()).expect("a volume");
            let is_there = match from.strip_prefix("./") {
                Some(file) => config(file).is_file(),
                None => compose["volumes"].as_object().is_some_and(|volumes| volumes.contains_key(from)),
            };
            assert!(is_there, "{name}: {from}");
        }
        for port in service["ports"].as_array().into_iter().flatten() {
            assert!(
                port.as_str().is_some_and(|port| port.starts_with("127.0.0.1:")),
                "{name}: {port} is open to the world"
            );
        }
        for other in service["depends_on"].as_object().into_iter().flatten() {
            assert!(services.contains_key(other.0), "{name} depends on {}", other.0);
        }
    }
    let environment = services["cachefence"]["environment"].as_object().expect("an environment");
    let variables = environment
        .iter()
        .map(|(name, value)| (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
    let settings = load(&read(&config("cachefence.toml")), variables.collect());
    assert_eq!(settings.sources.len(), 2);
    assert_eq!(services["cachefence"]["read_only"], true);
}

#[test]
fn the_image_has_a_user_and_no_shell() {
    let dockerfile = read(&config("../Dockerfile"));
    let stage = dockerfile.rsplit("\nFROM ").next().expect("a stage");
    assert!(stage.contains("distroless"), "{stage}");
    assert!(!stage.contains("\nRUN "), "there is no shell to run it: {stage}");
    let user = stage.lines().find_map(|line| line.strip_prefix("USER ")).expect("a user");
    assert!(user.split(':').all(|id| id.parse::<u32>().is_ok_and(|id| id > 0)), "{user}");
    for line in [
        "ENTRYPOINT [\"/usr/local/bin/cachefence\"]",
        "CMD [\"run\"]",
        "CMD [\"/usr/local/bin/cachefence\", \"healthcheck\"]",
    ] {
        assert!(stage.contains(line), "{line}");
    }
}

/// The unit with the program under test in place of the installed one.
fn unit() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let text = read(&config("cachefence.service"));
    let command = "ExecStart=/usr/local/bin/cachefence run --config /etc/cachefence/cachefence.toml\n";
    assert!(text.contains(command));
    let path = dir.path().join("cachefence.service");
    let here = text.replace("/usr/local/bin/cachefence", env!("CARGO_BIN_EXE_cachefence"));
    std::fs::write(&path, here).expect("written");
    (dir, path)
}

#[test]
fn systemd_takes_the_unit_and_finds_it_closed_down() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("systemd-analyze is not installed: not asked");
        return;
    }
    let (_dir, path) = unit();
    let verified = Command::new("systemd-analyze").arg("verify").arg(&path).output().expect("it runs");
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    let of_ours: Vec<&str> = said.lines().filter(|line| line.contains("cachefence.service")).collect();
    assert!(of_ours.is_empty(), "{of_ours:?}");
    let arguments = ["security", "--no-pager", "--offline=true", "--threshold=20"];
    let judged = Command::new("systemd-analyze").args(arguments).arg(&path).output().expect("it runs");
    let said = String::from_utf8_lossy(&judged.stdout).into_owned();
    println!("{}", said.lines().last().unwrap_or_default());
    assert!(
        judged.status.success(),
        "an exposure above 2.0: {said}{}",
        String::from_utf8_lossy(&judged.stderr)
    );
}
