//! Runs the threads of a kernel one after another, for texts without loops and without memory that threads share: what an instruction means, where no
//! GPU is at hand. Device memory is one array of bytes, and an address an index into it.

use std::collections::HashMap;

use half::f16;

/// Runs `threads` threads of 256 a block.
pub fn run(ptx: &str, entry: &str, params: &[u64], memory: &mut [u8], threads: usize) {
    let start = ptx.find(&format!(".entry {entry}(")).expect("no such entry");
    let (head, rest) = ptx[start..].split_once('{').unwrap();
    let body = &rest[..rest.find("\n}").unwrap()];
    let names = head.split(".param ").skip(1).map(|p| p.split(' ').nth(1).unwrap().trim_end_matches([',', ')', '\n']));
    let names: Vec<&str> = names.map(|name| name.split(')').next().unwrap()).collect();
    assert_eq!(names.len(), params.len(), "{names:?}");
    let params: HashMap<_, _> = names.into_iter().zip(params.iter().copied()).collect();
    for i in 0..threads {
        let registers = HashMap::from([("%tid.x".into(), i as u64 % 256), ("%ctaid.x".into(), i as u64 / 256)]);
        let mut thread = Thread { registers, params: &params, memory };
        body.split(';')
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with(".reg"))
            .all(|l| thread.step(l));
    }
}

struct Thread<'a> {
    registers: HashMap<String, u64>,
    params: &'a HashMap<&'a str, u64>,
    memory: &'a mut [u8],
}

fn single(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn bits(value: f32) -> u64 {
    value.to_bits().into()
}

/// The same for both halves of two words.
fn halves(a: u64, b: u64, f: impl Fn(f16, f16) -> f16) -> u64 {
    let half = |word: u64, i: u32| f16::from_bits((word >> (16 * i)) as u16);
    (0..2).map(|i| u64::from(f(half(a, i), half(b, i)).to_bits()) << (16 * i)).sum()
}

impl Thread<'_> {
    /// Whether the thread goes on.
    fn step(&mut self, line: &str) -> bool {
        let line = match line.strip_prefix('@').map(|l| l.split_once(' ').unwrap()) {
            Some((guard, line)) => {
                let (name, wanted) = guard.strip_prefix('!').map_or((guard, 1), |name| (name, 0));
                if self.registers[name] != wanted {
                    return true;
                }
                line
            }
            None => line,
        };
        if line == "ret" {
            return false;
        }
        let (op, args) = line.split_once(' ').unwrap();
        // Lists in braces and brackets are one operand.
        let mut operands = vec![String::new()];
        let mut depth = 0;
        for c in args.chars().filter(|c| *c != ' ') {
            depth += i32::from("{[".contains(c)) - i32::from("}]".contains(c));
            match c {
                ',' if depth == 0 => operands.push(String::new()),
                c => operands.last_mut().unwrap().push(c),
            }
        }
        self.execute(op, &operands.iter().map(String::as_str).collect::<Vec<_>>());
        true
    }

    fn value(&self, operand: &str) -> u64 {
        let hex = |digits| u64::from_str_radix(digits, 16).unwrap();
        match operand {
            o if o.starts_with('%') => *self.registers.get(o).unwrap_or_else(|| panic!("{o} has no value")),
            o if o.starts_with("0f") => hex(&o[2..]),
            o if o.starts_with("0x") => hex(&o[2..]),
            o => o.parse().unwrap(),
        }
    }

    fn place(&self, operand: &str) -> usize {
        let inside = operand.trim_matches(['[', ']']);
        let (base, offset) = inside.split_once('+').unwrap_or((inside, "0"));
        self.value(base) as usize + offset.parse::<usize>().unwrap()
    }

    fn execute(&mut self, op: &str, operands: &[&str]) {
        let parts: Vec<&str> = op.split('.').collect();
        let kind = parts.last().unwrap();
        let list = |operand: &str| operand.trim_matches(['{', '}']).split(',').map(str::to_owned).collect::<Vec<_>>();
        let bytes = kind[1..].parse::<usize>().map_or(4, |bits| bits / 8);
        match parts[..2] {
            ["ld", "param"] => {
                let value = self.params[operands[1].trim_matches(['[', ']'])];
                return self.set(operands[0], value);
            }
            ["ld", "global"] => {
                let at = self.place(operands[1]);
                let names = list(operands[0]);
                assert!(at.is_multiple_of(bytes * names.len()), "{op} {operands:?}: {at} is not aligned");
                for (i, name) in names.iter().enumerate() {
                    let mut raw = [0; 8];
                    raw[..bytes].copy_from_slice(&self.memory[at + i * bytes..][..bytes]);
                    let value = u64::from_le_bytes(raw);
                    let signed = *kind == "s8" && value > 127;
                    self.set(name, if signed { value | 0xffff_ff00 } else { value });
                }
                return;
            }
            ["st", "global"] => {
                let at = self.place(operands[0]);
                for (i, name) in list(operands[1]).iter().enumerate() {
                    let raw = self.value(name).to_le_bytes();
                    self.memory[at + i * bytes..][..bytes].copy_from_slice(&raw[..bytes]);
                }
                return;
            }
            ["mov", _] if operands[0].starts_with('{') => {
                let value = self.value(operands[1]);
                list(operands[0]).iter().enumerate().for_each(|(i, name)| self.set(name, (value >> (16 * i)) & 0xffff));
                return;
            }
            _ => {}
        }
        let v: Vec<u64> = operands[1..].iter().map(|operand| self.value(operand)).collect();
        let f = |i: usize| single(v[i]);
        let value = match (parts[0], *kind) {
            ("mov", _) | ("cvta", _) => v[0],
            ("cvt", "u32") => v[0],
            ("cvt", "s32") => bits(v[0] as u32 as i32 as f32),
            ("cvt", "f16") => bits(f16::from_bits(v[0] as u16).to_f32()),
            ("cvt", "f32") => f16_pair(f(0), f(1)),
            ("setp", kind) => {
                let less = if kind == "f32" { f(0) < f(1) } else { v[0] < v[1] };
                u64::from(match parts[1] {
                    "ge" => !less,
                    "lt" => less,
                    "le" => v[0] <= v[1],
                    "ne" => v[0] != v[1],
                    other => panic!("{other}"),
                })
            }
            ("selp", _) => v[usize::from(v[2] == 0)],
            ("fma", _) => bits(f(0).mul_add(f(1), f(2))),
            ("add", "f32") => bits(f(0) + f(1)),
            ("sub", "f32") => bits(f(0) - f(1)),
            ("mul", "f32") => bits(f(0) * f(1)),
            ("neg", "f32") => bits(-f(0)),
            ("abs", "f32") => bits(f(0).abs()),
            ("rcp", "f32") => bits(1.0 / f(0)),
            ("ex2", "f32") => bits(f(0).exp2()),
            ("min", "f16x2") => halves(v[0], v[1], |a, b| if a < b { a } else { b }),
            ("max", "f16x2") => halves(v[0], v[1], |a, b| if a > b { a } else { b }),
            ("min", _) => v[0].min(v[1]),
            ("prmt", _) => {
                let table = v[0] | v[1] << 32;
                (0..4).map(|i| ((table >> (8 * ((v[2] >> (4 * i)) & 7))) & 255) << (8 * i)).sum()
            }
            ("mad", _) => v[0] * v[1] + v[2],
            ("mul", _) => v[0] * v[1],
            ("add", _) => v[0] + v[1],
            ("sub", _) => v[0] - v[1],
            ("rem", _) => v[0] % v[1],
            ("and", _) => v[0] & v[1],
            ("or", _) => v[0] | v[1],
            ("xor", _) => v[0] ^ v[1],
            ("shl", _) => (v[0] << v[1]) & 0xffff_ffff,
            ("shr", _) => v[0] >> v[1],
            _ => panic!("{op} is not known here"),
        };
        self.set(operands[0], value);
    }

    fn set(&mut self, name: &str, value: u64) {
        self.registers.insert(name.to_owned(), value);
    }
}

/// Two numbers rounded, the second one low.
fn f16_pair(high: f32, low: f32) -> u64 {
    u64::from(f16::from_f32(high).to_bits()) << 16 | u64::from(f16::from_f32(low).to_bits())
}
