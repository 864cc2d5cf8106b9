//! Operators: arithmetic, comparisons, indices and slices.

use std::cmp::Ordering;

use super::{
    Failure, format,
    meter::{ITEM, Meter, Writer},
    syntax::{Binary, Compare},
    value::{Seq, SeqKind, Value, number_order, same_for},
};

impl Binary {
    fn sign(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::FloorDiv => "//",
            Self::Rem => "%",
            Self::Pow => "**",
        }
    }
}

/// Returns the error for an integer that is out of range.
pub fn too_large() -> Failure {
    Failure::new("a number is too large")
}

/// Returns `left operator right`.
pub fn binary(left: &Value, operator: Binary, right: &Value, meter: &Meter) -> Result<Value, Failure> {
    if let (Binary::Rem, Value::Str(text)) = (operator, left) {
        return format::percent(text, right, meter).map(Value::from);
    }
    left.check_defined()?;
    right.check_defined()?;
    if let (Some(a), Some(b)) = (left.as_int(), right.as_int()) {
        return integers(a, operator, b);
    }
    if let (Some(a), Some(b)) = (left.as_float(), right.as_float()) {
        return floats(a, operator, b).map(Value::Float);
    }
    match (operator, left, right) {
        (Binary::Add, Value::Str(a), Value::Str(b)) => {
            let mut out = Writer::new(meter);
            out.push(a)?;
            out.push(b)?;
            Ok(out.finish().into())
        }
        (Binary::Add, Value::Seq(a), Value::Seq(b)) if is_plain(a) && left.type_name() == right.type_name() => {
            meter.charge_for(a.items.len() + b.items.len(), ITEM)?;
            Seq::of(a.kind, [&a.items[..], &b.items].concat(), meter)
        }
        (Binary::Mul, Value::Str(text), count) | (Binary::Mul, count, Value::Str(text)) if count.as_int().is_some() => {
            let mut out = Writer::new(meter);
            out.repeat(text, times(count))?;
            Ok(out.finish().into())
        }
        (Binary::Mul, Value::Seq(seq), count) | (Binary::Mul, count, Value::Seq(seq))
            if is_plain(seq) && count.as_int().is_some() =>
        {
            let length = seq.items.len().saturating_mul(times(count));
            meter.charge_for(length, ITEM)?;
            Seq::of(seq.kind, seq.items.iter().cycle().take(length).cloned().collect(), meter)
        }
        _ => {
            let (sign, left, right) = (operator.sign(), left.type_name(), right.type_name());
            Err(Failure::new(format!("unsupported operand type(s) for {sign}: '{left}' and '{right}'")))
        }
    }
}

fn is_plain(seq: &Seq) -> bool {
    matches!(seq.kind, SeqKind::List | SeqKind::Tuple)
}

fn times(count: &Value) -> usize {
    usize::try_from(count.as_int().unwrap_or_default().max(0)).unwrap_or(usize::MAX)
}

fn integers(a: i128, operator: Binary, b: i128) -> Result<Value, Failure> {
    let zero = || Failure::new("division by zero");
    if b == 0 && matches!(operator, Binary::Div | Binary::FloorDiv | Binary::Rem) {
        return Err(zero());
    }
    let result = match operator {
        Binary::Add => a.checked_add(b),
        Binary::Sub => a.checked_sub(b),
        Binary::Mul => a.checked_mul(b),
        Binary::Div => return Ok(Value::Float(a as f64 / b as f64)),
        Binary::FloorDiv => a.checked_div(b).map(|q| if a % b != 0 && (a < 0) != (b < 0) { q - 1 } else { q }),
        Binary::Rem => a.checked_rem(b).map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r }),
        Binary::Pow if b < 0 => return floats(a as f64, operator, b as f64).map(Value::Float),
        Binary::Pow => match a {
            0 | 1 => Some(if b == 0 { 1 } else { a }),
            -1 => Some(if b % 2 == 0 { 1 } else { -1 }),
            _ => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
        },
    };
    result.map(Value::Int).ok_or_else(too_large)
}

fn floats(a: f64, operator: Binary, b: f64) -> Result<f64, Failure> {
    if b == 0.0 && matches!(operator, Binary::Div | Binary::FloorDiv | Binary::Rem) {
        return Err(Failure::new("float division by zero"));
    }
    let remainder = || {
        let r = a % b;
        if r == 0.0 {
            0f64.copysign(b)
        } else if (r < 0.0) != (b < 0.0) {
            r + b
        } else {
            r
        }
    };
    Ok(match operator {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Rem => remainder(),
        Binary::FloorDiv => {
            let quotient = (a - a % b) / b - if a % b != 0.0 && (a % b < 0.0) != (b < 0.0) { 1.0 } else { 0.0 };
            if quotient == 0.0 { 0f64.copysign(a / b) } else { (quotient + 0.5).floor().min(quotient.ceil()) }
        }
        Binary::Pow if a == 0.0 && b < 0.0 => {
            return Err(Failure::new("0.0 cannot be raised to a negative power"));
        }
        Binary::Pow if a < 0.0 && b.fract() != 0.0 => return Err(Failure::new("complex numbers are not supported")),
        Binary::Pow => {
            let result = a.powf(b);
            if result.is_infinite() && a.is_finite() && b.is_finite() {
                return Err(Failure::new("Numerical result out of range"));
            }
            result
        }
    })
}

/// Returns whether `left comparison right`.
pub fn compare(left: &Value, comparison: Compare, right: &Value, meter: &Meter) -> Result<bool, Failure> {
    let ordered = |wanted: &[Ordering]| -> Result<bool, Failure> {
        Ok(order(left, right, meter)?.is_some_and(|found| wanted.contains(&found)))
    };
    match comparison {
        Compare::Eq => equal(left, right, meter),
        Compare::Ne => equal(left, right, meter).map(|equal| !equal),
        Compare::Lt => ordered(&[Ordering::Less]),
        Compare::Le => ordered(&[Ordering::Less, Ordering::Equal]),
        Compare::Gt => ordered(&[Ordering::Greater]),
        Compare::Ge => ordered(&[Ordering::Greater, Ordering::Equal]),
        Compare::In => contains(right, left, meter),
        Compare::NotIn => contains(right, left, meter).map(|contained| !contained),
    }
}

/// Returns whether two values are equal.
pub fn equal(left: &Value, right: &Value, meter: &Meter) -> Result<bool, Failure> {
    let mut cost = Cost { meter, failure: None };
    let equal = same_for(left, right, &mut |bytes| cost.pay(bytes));
    match cost.failure {
        Some(failure) => Err(failure),
        None => Ok(equal),
    }
}

struct Cost<'m> {
    meter: &'m Meter,
    failure: Option<Failure>,
}

impl Cost<'_> {
    /// Whether the budget covers `cost`.
    fn pay(&mut self, cost: usize) -> bool {
        if let Err(failure) = self.meter.charge(cost) {
            self.failure = Some(failure);
        }
        self.failure.is_none()
    }
}

/// Returns the order of two values; `None` if neither comes first. Fails if they can't be compared.
pub fn order(left: &Value, right: &Value, meter: &Meter) -> Result<Option<Ordering>, Failure> {
    meter.charge(ITEM / 4)?;
    left.check_defined()?;
    right.check_defined()?;
    match (left, right) {
        (Value::Str(a), Value::Str(b)) => {
            meter.charge(a.len().min(b.len()))?;
            Ok(Some(a.cmp(b)))
        }
        (Value::Seq(a), Value::Seq(b))
            if left.type_name() == right.type_name() && matches!(left.type_name(), "list" | "tuple") =>
        {
            for (a, b) in a.items.iter().zip(&b.items) {
                if !equal(a, b, meter)? {
                    return order(a, b, meter);
                }
            }
            Ok(Some(a.items.len().cmp(&b.items.len())))
        }
        _ if left.as_float().is_some() && right.as_float().is_some() => Ok(number_order(left, right)),
        _ => {
            let (left, right) = (left.type_name(), right.type_name());
            Err(Failure::new(format!("values of types '{left}' and '{right}' cannot be ordered")))
        }
    }
}

/// Returns whether `item` is in `container`.
pub fn contains(container: &Value, item: &Value, meter: &Meter) -> Result<bool, Failure> {
    match container {
        Value::Str(text) => {
            let Value::Str(part) = item else {
                let name = item.type_name();
                return Err(Failure::new(format!("'in <string>' requires string as left operand, not {name}")));
            };
            meter.charge(text.len() + part.len())?;
            Ok(text.contains(&**part))
        }
        Value::Seq(seq) => {
            for one in &seq.items {
                if equal(one, item, meter)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::Dict(dict) => Ok(dict.get(item, meter)?.is_some()),
        Value::Undefined(_) => Ok(false),
        _ => Err(Failure::new(format!("argument of type '{}' is not iterable", container.type_name()))),
    }
}

/// Returns the value at an index, counted from the end if it is negative.
pub fn at_index(value: &Value, index: i128, meter: &Meter) -> Result<Option<Value>, Failure> {
    let index = |length: usize| {
        let index = if index < 0 { index.checked_add(length as i128)? } else { index };
        usize::try_from(index).ok().filter(|&index| index < length)
    };
    Ok(match value {
        Value::Seq(seq) if !matches!(seq.kind, SeqKind::Keys | SeqKind::Values | SeqKind::Items) => {
            index(seq.items.len()).map(|at| seq.items[at].clone())
        }
        Value::Str(text) => {
            meter.charge(text.len())?;
            let at = index(text.chars().count());
            at.and_then(|at| text.chars().nth(at)).map(|c| Value::from(c.to_string()))
        }
        _ => None,
    })
}

/// Returns `value[start:stop:step]`.
pub fn slice(value: &Value, bounds: &[Value; 3], meter: &Meter) -> Result<Value, Failure> {
    let number = |bound: &Value| match bound {
        Value::None => Ok(None),
        _ => match bound.as_int() {
            Some(int) => Ok(Some(int)),
            None => Err(Failure::new("slice indices must be integers or None or have an __index__ method")),
        },
    };
    let [start, stop, step] = [number(&bounds[0])?, number(&bounds[1])?, number(&bounds[2])?];
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Failure::new("slice step cannot be zero"));
    }
    let clamped = |length: i128| {
        let (min, max) = if step > 0 { (0, length) } else { (-1, length - 1) };
        let clamp = |at: i128| (if at < 0 { at.saturating_add(length) } else { at }).clamp(min, max);
        let (first, last) = if step > 0 { (0, length) } else { (length - 1, -1) };
        (start.map_or(first, clamp), stop.map_or(last, clamp))
    };
    let indices = |length: usize| {
        let (mut at, end) = clamped(length as i128);
        std::iter::from_fn(move || {
            let in_range = if step > 0 { at < end } else { at > end }.then_some(at)?;
            at = at.saturating_add(step);
            usize::try_from(in_range).ok()
        })
    };
    match value {
        Value::Str(text) => {
            meter.charge(5 * text.len())?;
            let chars: Vec<char> = text.chars().collect();
            Ok(indices(chars.len()).map(|at| chars[at]).collect::<String>().into())
        }
        Value::Seq(seq) if !matches!(seq.kind, SeqKind::Keys | SeqKind::Values | SeqKind::Items) => {
            meter.charge_for(seq.items.len(), ITEM / 8)?;
            let items: Vec<_> = indices(seq.items.len()).map(|at| seq.items[at].clone()).collect();
            let kind = match seq.kind {
                SeqKind::Range(first, _, by) => {
                    let (start, end) = clamped(seq.items.len() as i128);
                    let index = |at: i128| first.saturating_add(at.saturating_mul(by));
                    SeqKind::Range(index(start), index(end), by.saturating_mul(step))
                }
                SeqKind::List => SeqKind::List,
                _ => SeqKind::Tuple,
            };
            Seq::of(kind, items, meter)
        }
        Value::Undefined(message) => Err(Failure::new(&**message)),
        _ => Err(Failure::new(format!("'{}' object is not subscriptable", value.type_name()))),
    }
}
