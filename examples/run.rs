//! Runs every example, so that none of them only compiles.

macro_rules! examples {
    ($($name:ident: $file:literal,)*) => {
        $(
            mod $name {
                include!($file);

                #[test]
                fn runs() {
                    main().expect("the example works");
                }
            }
        )*
    };
}

examples! {
    axum_gateway: "axum-gateway.rs",
    backend: "backend.rs",
    channel: "channel.rs",
    register: "register.rs",
    retry_and_health: "retry-and-health.rs",
    unit_test: "unit-test.rs",
    watch: "watch.rs",
}
