//! Shapes of exported functions.

/// Functions about one GPU: `fn nvmlX(this, argument: type, ..) body`; the body's `Answer` is
/// used if nothing demands another one.
macro_rules! gpu_calls {
    ($(fn $name:ident($this:ident $(, $argument:ident: $type:ty)*) $body:block)*) => { $(
        #[unsafe(no_mangle)]
        extern "C" fn $name(device: $crate::layout::Device $(, $argument: $type)*) -> $crate::answer::Code {
            $crate::answer::of_gpu(stringify!($name), device, |$this| $body)
        }
    )* };
}

/// The same about the host.
macro_rules! host_calls {
    ($(fn $name:ident($now:ident $(, $argument:ident: $type:ty)*) $body:block)*) => { $(
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name($($argument: $type),*) -> $crate::answer::Code {
            $crate::answer::of_host(stringify!($name), |$now| $body)
        }
    )* };
}

pub(crate) use {gpu_calls, host_calls};
