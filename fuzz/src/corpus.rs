use std::{fs, path::Path};

/// Runs a target on its committed corpus, and then on `mutations` inputs derived from it, which are
/// the same each time.
pub(super) fn run(target: &str, mutations: usize, body: impl Fn(&[u8])) {
    // The packages that run targets are next to `fuzz`.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut paths: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let inputs: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(!inputs.is_empty(), "{folder:?} is empty");
    inputs.iter().for_each(|input| body(input));
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..mutations {
        body(&mutated(&inputs, &mut random));
    }
    println!("{target}: {} inputs of the corpus, {mutations} mutations", inputs.len());
}

fn mutated(inputs: &[Vec<u8>], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut input = inputs[random.usize(..inputs.len())].clone();
    for _ in 0..random.usize(1..6) {
        let place = random.usize(..=input.len());
        let length = random.usize(..=(input.len() - place).min(8));
        let rest = place..place + length;
        match random.u8(..6) {
            0 => input.insert(place, random.u8(..)),
            1 => drop(input.splice(rest, [])),
            2 if place < input.len() => input[place] ^= 1 << random.u8(..8),
            3 => {
                let copy = input[rest].to_vec();
                input.splice(place..place, copy);
            }
            4 => {
                let other = &inputs[random.usize(..inputs.len())];
                input.splice(place.., other[random.usize(..=other.len())..].iter().copied());
            }
            _ => {
                let token: &[u8] = random.choice(TOKENS).copied().unwrap_or_default();
                input.splice(rest, token.iter().copied());
            }
        }
    }
    input
}

/// Tokens that often break parsers.
const TOKENS: &[&[u8]] = &[
    b"\0",
    b"\n",
    b"\x1b[",
    b"\xe2\x80\xae",
    b"\xff",
    b"/",
    b"//",
    b"..",
    b":",
    b"@",
    b"%",
    b"%00",
    b"[",
    b"]",
    b"::",
    b"0",
    b"-1",
    b"65536",
    b"1e999",
    b"\"",
    b"{",
    b"}",
    b"\\u0000",
    b"\\ud800",
    b"null",
    b"Addr",
    b"weight",
    b"?ttl=",
    b"unix:",
];
