//! Compares `api.proto` with `contract.tsv`, so that no change of what goes over the wire passes unseen.
//!
//! The table was written from the published contract, not from `api.proto`: one row for each rpc, field, enum value and
//! empty message. A new Kubernetes version is taken over by adding its rows first.

use std::collections::BTreeSet;
use std::path::Path;

use protox::prost_reflect::{Cardinality, DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};

const PACKAGE: &str = "runtime.v1.";

/// One row: owner, number, label, type, name, with tabs between them.
fn row(owner: &str, number: &str, label: &str, kind: &str, name: &str) -> String {
    format!("{owner}\t{number}\t{label}\t{kind}\t{name}")
}

fn short(full: &str) -> &str {
    full.strip_prefix(PACKAGE).unwrap_or(full)
}

fn kind(field: &FieldDescriptor) -> String {
    match field.kind() {
        Kind::Message(message) if message.is_map_entry() => {
            let key = message.map_entry_key_field();
            let value = message.map_entry_value_field();
            format!("map<{},{}>", kind(&key), kind(&value))
        }
        Kind::Message(message) => short(message.full_name()).to_owned(),
        Kind::Enum(values) => short(values.full_name()).to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

fn label(field: &FieldDescriptor) -> String {
    let mut words = Vec::new();
    if field.cardinality() == Cardinality::Repeated && !field.is_map() {
        words.push("repeated");
    }
    let is_set = |option: &str| {
        let options = field.options();
        options.get_field_by_name(option).is_some_and(|value| value.as_bool() == Some(true))
    };
    if is_set("deprecated") {
        words.push("deprecated");
    }
    assert!(!field.supports_presence() || field.kind().as_message().is_some(), "{} is optional", field.full_name());
    words.join(" ")
}

fn message_rows(message: &MessageDescriptor, rows: &mut Vec<String>) {
    if message.is_map_entry() {
        return;
    }
    let owner = short(message.full_name());
    if message.fields().len() == 0 {
        rows.push(row(owner, "", "", "", ""));
    }
    assert_eq!(message.oneofs().len(), 0, "{owner} has a oneof, which the table cannot show");
    rows.extend(message.fields().map(|f| row(owner, &f.number().to_string(), &label(&f), &kind(&f), f.name())));
    message.child_enums().for_each(|values| enum_rows(&values, rows));
    message.child_messages().for_each(|child| message_rows(&child, rows));
}

fn enum_rows(values: &EnumDescriptor, rows: &mut Vec<String>) {
    let owner = short(values.full_name());
    rows.extend(values.values().map(|v| row(owner, &v.number().to_string(), "", "", v.name())));
}

fn service_rows(pool: &DescriptorPool, rows: &mut Vec<String>) {
    for service in pool.services() {
        for method in service.methods() {
            assert!(!method.is_client_streaming(), "{} streams from the client", method.full_name());
            let label = if method.is_server_streaming() { "stream" } else { "" };
            let (input, output) = (method.input(), method.output());
            let kind = format!("{} -> {}", short(input.full_name()), short(output.full_name()));
            rows.push(row(short(service.full_name()), "", label, &kind, method.name()));
        }
    }
}

#[test]
fn api_proto_is_the_contract() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut compiler = protox::Compiler::new([root]).expect("the include path is readable");
    compiler.open_file("api.proto").expect("api.proto compiles");
    let pool = compiler.descriptor_pool();
    let file = pool.get_file_by_name("api.proto").expect("it was just compiled");
    assert_eq!(file.package_name(), "runtime.v1");
    let mut rows = Vec::new();
    service_rows(&pool, &mut rows);
    file.messages().for_each(|message| message_rows(&message, &mut rows));
    file.enums().for_each(|values| enum_rows(&values, &mut rows));

    let table = std::fs::read_to_string(root.join("contract.tsv")).expect("contract.tsv is there");
    let wanted: Vec<&str> = table.lines().skip(1).collect();
    let (is, should): (BTreeSet<&str>, BTreeSet<&str>) =
        (rows.iter().map(String::as_str).collect(), wanted.iter().copied().collect());
    assert_eq!((is.len(), should.len()), (rows.len(), wanted.len()), "a row is there twice");
    let added: Vec<_> = is.difference(&should).collect();
    let gone: Vec<_> = should.difference(&is).collect();
    assert!(added.is_empty() && gone.is_empty(), "only in api.proto: {added:#?}\nonly in contract.tsv: {gone:#?}");
}
