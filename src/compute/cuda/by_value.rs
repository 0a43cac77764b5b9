//! Structures that kernels take by value.
//!
//! Such a structure is written twice: in the kernel's file, and by [`by_value!`] beside the launch, with the same fields
//! in the same order. `repr(C)` places them as CUDA does, and the size is asserted on either side.

use candle_core::Result;

/// A structure that a kernel takes by value. What it points to lives as long as `'a`.
pub(super) trait ByValue<'a> {
    /// The memory that it fills.
    fn words(&self) -> Box<[u64]>;
}

/// What the fields of such a structure hold.
pub(super) trait Field {
    /// The field's bits, lowest first, as in memory.
    fn bits(self) -> u64;
}

impl Field for i32 {
    fn bits(self) -> u64 {
        self.cast_unsigned().into()
    }
}

impl Field for u32 {
    fn bits(self) -> u64 {
        self.into()
    }
}

impl Field for i64 {
    fn bits(self) -> u64 {
        self.cast_unsigned()
    }
}

impl Field for f32 {
    fn bits(self) -> u64 {
        self.to_bits().into()
    }
}

/// A size or an index as a kernel's parameter or field holds it.
pub(super) fn size<T: TryFrom<usize>>(x: usize) -> Result<T> {
    match T::try_from(x) {
        Ok(size) => Ok(size),
        Err(_) => candle_core::bail!("{x} is too large for a kernel"),
    }
}

/// Defines a structure that a kernel takes by value, with the bytes that it has in the kernel's file.
macro_rules! by_value {
    (
        $(#[$about:meta])*
        struct $name:ident<$life:lifetime>: $bytes:tt bytes {
            $($field:ident: $kind:ty,)+
        }
    ) => {
        $(#[$about])*
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct $name<$life> {
            $($field: $kind,)+
        }

        const _: () = assert!(size_of::<$name>() == $bytes, "the kernel's has another size");

        impl<$life> $crate::compute::cuda::by_value::ByValue<$life> for $name<$life> {
            fn words(&self) -> Box<[u64]> {
                use $crate::compute::cuda::by_value::Field;
                let mut words = vec![0; size_of::<Self>().div_ceil(size_of::<u64>())];
                $(
                    let byte = std::mem::offset_of!(Self, $field);
                    words[byte / 8] |= self.$field.bits() << (8 * (byte % 8));
                )+
                words.into()
            }
        }
    };
}
pub(super) use by_value;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cuda::launch::Place;

    by_value! {
        struct Mixed<'a>: 32 bytes {
            none: Place<'a, f32>,
            below: i32,
            real: f32,
            alone: u32,
            wide: i64,
        }
    }

    #[test]
    fn fields_stand_where_c_places_them() {
        let mixed = Mixed { none: Place::none(), below: -2, real: 1.0, alone: 7, wide: -3 };
        let words = [0, 0x3f80_0000_ffff_fffe, 7, u64::MAX - 2];
        assert_eq!(mixed.words()[..], words);
        assert_eq!(size::<i32>(5).unwrap(), 5);
        let error = size::<i32>(1 << 31).unwrap_err().to_string();
        assert!(error.contains("too large for a kernel"), "{error}");
    }
}
