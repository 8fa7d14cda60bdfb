import LinuxCalls
import ProcessTestKit
import Testing

/// The public instruction tests, one program each, built by Guests/isa-suite/build.
private enum ISASuite {
    static let directory = "\(Checkout.cache)/isa-suite"

    static let requirement = Requirement(
        Checkout.exists("\(directory)/.complete"),
        "no instruction tests: Guests/isa-suite/build, which needs a network or RISCV_TESTS=CHECKOUT of riscv-tests")

    static func programs() throws -> [String] {
        try HostTools.need("find", [directory, "-name", "*.elf"]).split(separator: "\n").map(String.init).sorted()
    }
}

@Suite(
    "The public instruction tests under the tool", .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: ISASuite.requirement.isMet, "\(ISASuite.requirement)"))
struct ISASuiteTests {
    private func end(of program: String, _ more: [String] = []) throws -> ProcessEnd {
        let run = try MonitorRun()
        return try run.command(["run", "--firmware", program, "--memory", "64M", "--console", "null"] + more).end
    }

    @Test("each ends with status 0, in physical and in virtual memory")
    func passes() throws {
        let programs = try ISASuite.programs()
        for kind in ["rv64ui-p-", "rv64ui-v-", "rv64ud-v-", "rv64ua-p-", "rv64uzbb-v-", "rv64mi-p-", "rv64si-p-"] {
            #expect(programs.contains { $0.contains(kind) }, "none of \(kind)")
        }
        for program in programs {
            let end = try end(of: program)
            #expect(end == .exited(status: 0), "\(program)")
        }
    }

    @Test("one that needs what the processor was not given fails, so a status of 0 means something")
    func fails() throws {
        let without = ["--isa", "rv64imafdc_zicsr_zifencei"]
        for environment in ["p", "v"] {
            let program = "\(ISASuite.directory)/rv64uzba-\(environment)-sh1add.elf"
            #expect(try end(of: program, without) != .exited(status: 0))
        }
    }
}
