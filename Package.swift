// swift-tools-version: 6.2
import PackageDescription

// The map. Who may import what is decided here, and `ArchitectureTests` reads every `import` line against it.
// `Documentation/decisions/0001-the-map.md` says why each target exists.

let vocabulary: [Target.Dependency] = ["GuestMemory", "GuestTime", "ComponentState"]

/// Strict everywhere: Swift 6 mode, and each use of unsafe memory is marked, so that `grep unsafe` is the audit.
let strict: [SwiftSetting] = [
    .swiftLanguageMode(.v6), .strictMemorySafety(), .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
]

/// The interpreter's engine is raw memory throughout; there the marks would hide more than they show.
/// The two LLVM flags let the dispatch be copied to the end of each op (see `Documentation/interpreter.md`).
let engine: [SwiftSetting] = [
    .swiftLanguageMode(.v6), .enableUpcomingFeature("InternalImportsByDefault"),
    .unsafeFlags(
        ["-Xllvm", "-tail-dup-pred-size=10000", "-Xllvm", "-tail-dup-succ-size=10000"], .when(configuration: .release)),
]

func library(
    _ name: String, _ dependencies: [Target.Dependency] = [], exclude: [String] = [], settings: [SwiftSetting] = strict
) -> Target {
    .target(name: name, dependencies: dependencies, exclude: exclude, swiftSettings: settings)
}

func tests(_ name: String, _ dependencies: [Target.Dependency], resources: [Resource] = []) -> Target {
    .testTarget(name: name, dependencies: dependencies, resources: resources, swiftSettings: [.swiftLanguageMode(.v6)])
}

let system = Target.Dependency.product(name: "SystemPackage", package: "swift-system")
let logging = Target.Dependency.product(name: "Logging", package: "swift-log")
let toml = Target.Dependency.product(name: "TOMLKit", package: "TOMLKit")
let arguments = Target.Dependency.product(name: "ArgumentParser", package: "swift-argument-parser")

let package = Package(
    name: "sidestep",
    products: [
        .executable(name: "sidestep", targets: ["sidestep"]),
        .library(name: "LocalMigration", targets: ["LocalMigration"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/LebJe/TOMLKit", from: "0.6.0"),
    ],
    targets: [
        // The system below.
        .target(name: "CLinuxShims"),
        .target(name: "CBuildStamp"),
        library("LinuxCalls", ["CLinuxShims", system]),

        // The vocabulary that both halves share.
        library("GuestMemory", ["LinuxCalls"]),
        library("GuestTime"),
        library("ComponentState"),

        // What runs.
        library("DeviceModel", vocabulary),
        library("PlatformDevices", vocabulary + ["DeviceModel"]),
        library("VirtioDevices", vocabulary + ["DeviceModel", "LinuxCalls"]),
        library("HostBackends", ["ComponentState", "DeviceModel", "LinuxCalls"]),
        library("ProcessorModel", vocabulary),
        library("RISCVProcessor", vocabulary + ["ProcessorModel", "LinuxCalls"], settings: engine),
        library(
            "Machine",
            vocabulary + [
                "DeviceModel", "PlatformDevices", "VirtioDevices", "HostBackends", "ProcessorModel", "RISCVProcessor",
                "LinuxCalls", system,
            ]),

        // What moves it.
        library("MigrationStream", ["ComponentState"]),
        library("MigrationEngine", vocabulary + ["MigrationStream"]),
        library(
            "MigrationChannels",
            vocabulary + ["MigrationEngine", "MigrationStream", "LinuxCalls", "CLinuxShims", system]),
        library("QMPProtocol"),
        library("MonitorClient", ["QMPProtocol", "LinuxCalls"]),

        // Stock QEMU's own processes.
        library("StockQEMU", ["QMPProtocol", "MonitorClient", "LinuxCalls"]),

        // The library for any Swift process, and a program that uses it.
        library("LocalMigration", ["MigrationChannels", "LinuxCalls"]),
        .executableTarget(
            name: "key-value-server", dependencies: ["LocalMigration"], path: "Examples/KeyValueServer",
            swiftSettings: strict),
        .executableTarget(
            name: "counter", dependencies: ["LocalMigration"], path: "Examples/Counter",
            swiftSettings: [.swiftLanguageMode(.v6)]),

        // Where the halves meet.
        library(
            "Supervisor",
            vocabulary + [
                "LinuxCalls", "DeviceModel", "HostBackends", "ProcessorModel", "Machine", "MigrationStream",
                "MigrationEngine", "MigrationChannels", "QMPProtocol", "CBuildStamp", logging, toml,
            ]),
        .executableTarget(
            name: "sidestep",
            dependencies: [
                "GuestMemory", "Supervisor", "StockQEMU", "MonitorClient", "QMPProtocol", "MigrationStream",
                "LinuxCalls",
                arguments,
            ],
            swiftSettings: strict),

        // Benchmarks: see Documentation/ and the head of each.
        .executableTarget(
            name: "stream-throughput",
            dependencies: ["GuestMemory", "LinuxCalls", "MigrationEngine", "MigrationChannels", "ComponentState"],
            path: "Benchmarks/StreamThroughput", swiftSettings: [.swiftLanguageMode(.v6)]),
        .executableTarget(name: "stream-throughput-c", path: "Benchmarks/StreamThroughputC"),

        // Tests.
        library("MigrationTestKit", vocabulary + ["MigrationEngine", "MigrationStream"]),
        library("ProcessTestKit", ["LinuxCalls"]),
        tests("ArchitectureTests", ["LinuxCalls", "ProcessTestKit"]),
        tests("LinuxCallsTests", ["LinuxCalls"]),
        tests("GuestMemoryTests", ["GuestMemory"]),
        tests("ComponentStateTests", ["ComponentState"]),
        tests("PlatformDevicesTests", ["PlatformDevices", "MigrationStream"]),
        tests(
            "VirtioDevicesTests",
            vocabulary + ["DeviceModel", "VirtioDevices", "MigrationStream", "LinuxCalls"], resources: [.copy("Corpus")]
        ),
        tests("HostBackendsTests", ["DeviceModel", "HostBackends", "LinuxCalls"]),
        .target(name: "CFloatOracle", path: "Tests/Support/CFloatOracle"),
        tests(
            "RISCVProcessorTests",
            vocabulary + ["RISCVProcessor", "ProcessorModel", "MigrationStream", "CFloatOracle", "LinuxCalls"]),
        tests(
            "MachineTests",
            vocabulary + ["Machine", "DeviceModel", "MigrationStream", "ProcessTestKit", "LinuxCalls"]),
        tests("MigrationStreamTests", ["MigrationStream"], resources: [.copy("Corpus")]),
        tests(
            "MigrationEngineTests",
            [
                "MigrationEngine", "MigrationChannels", "MigrationTestKit", "LinuxCalls", "ProcessTestKit",
                "stream-throughput",
            ]),
        tests("QMPProtocolTests", ["QMPProtocol"]),
        tests(
            "SupervisorTests",
            [
                "Supervisor", "MonitorClient", "QMPProtocol", "LinuxCalls", "GuestMemory", "ComponentState",
                "MigrationEngine",
                "MigrationStream",
            ]),
        tests("StockQEMUTests", ["StockQEMU", "LinuxCalls", "QMPProtocol", "ProcessTestKit"]),
        // Whole processes: the built tool, real guests, real peers.
        tests("MachineRunTests", ["LinuxCalls", "ProcessTestKit"]),
        .executableTarget(
            name: "handover-probe", dependencies: ["MigrationChannels", "LinuxCalls"],
            path: "Tests/Support/HandoverProbe", swiftSettings: strict),
        tests("HandoverTests", ["LinuxCalls", "MigrationChannels", "QMPProtocol", "handover-probe", "ProcessTestKit"]),
        tests("LocalMigrationTests", ["LinuxCalls", "key-value-server", "counter", "ProcessTestKit"]),
        tests("StockQEMURunTests", ["LinuxCalls", "MonitorClient", "QMPProtocol", "ProcessTestKit"]),
        tests(
            "InteroperabilityTests",
            vocabulary + [
                "LinuxCalls", "Machine", "MigrationStream", "MigrationEngine", "MigrationChannels", "MonitorClient",
                "QMPProtocol", "Supervisor", "ProcessTestKit",
            ]),
    ]
)

// One fuzzer per input from outside. A fuzzer has no main, so it is in the package only when asked for:
//     FUZZING=1 swift build --sanitize=fuzzer --scratch-path .build/fuzz --product FuzzMigrationStream
if Context.environment["FUZZING"] != nil {
    for name in ["FuzzMigrationStream", "FuzzRAMSection", "FuzzReturnPath", "FuzzMappedRAM", "FuzzMultiFD"] {
        package.targets.append(
            .executableTarget(
                name: name, dependencies: ["MigrationStream", "ComponentState"], path: "Fuzzers/\(name)",
                exclude: ["Corpus"], swiftSettings: strict + [.unsafeFlags(["-parse-as-library"])]))
        package.products.append(.executable(name: name, targets: [name]))
    }
    package.targets.append(
        .executableTarget(
            name: "FuzzQMP", dependencies: ["QMPProtocol"], path: "Fuzzers/FuzzQMP", exclude: ["Corpus"],
            swiftSettings: strict + [.unsafeFlags(["-parse-as-library"])]))
    package.products.append(.executable(name: "FuzzQMP", targets: ["FuzzQMP"]))
}
