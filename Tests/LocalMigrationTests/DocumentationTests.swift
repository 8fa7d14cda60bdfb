import LinuxCalls
import ProcessTestKit
import Testing

@Suite("The library's documentation") struct DocumentationTests {
    @Test("is made without a warning: every symbol it names is there, every parameter is told of")
    func converts() throws {
        let directory = try TemporaryDirectory()
        let output = directory.file("pages")
        let made = try HostTools.run("\(Checkout.root)/Documentation/convert", [output], seconds: 120)
        if made.end == .exited(status: 69) { try Test.cancel("the toolchain has no docc") }
        #expect(made.end == .exited(status: 0), "\(made.output) \(made.errors)")
        #expect(Checkout.exists("\(output)/data/documentation/localmigration.json"))
        #expect(Checkout.exists("\(output)/data/documentation/localmigration/handingover.json"))
    }
}
