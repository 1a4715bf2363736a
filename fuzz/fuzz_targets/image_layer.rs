//! See the module of this name.
#![no_main]

#[global_allocator]
static HEAP: cricket_fuzz::heap::Counted = cricket_fuzz::heap::Counted;

libfuzzer_sys::fuzz_target!(|input: &[u8]| cricket_fuzz::image_layer::check(input));
