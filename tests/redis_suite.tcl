# Runs the test server of Redis's suite with its sockets on loopback: to find a free port it opens one on every address.
rename socket socket_of_tcl
proc socket {args} {
    if {[lindex $args 0] eq "-server" && "-myaddr" ni $args} {
        set args [linsert $args 2 -myaddr 127.0.0.1]
    }
    uplevel 1 [list socket_of_tcl {*}$args]
}
set argv0 tests/test_helper.tcl
source tests/test_helper.tcl
