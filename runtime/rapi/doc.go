// Package rapi is the Lambda Runtime API (2018-06-01) as one instance sees it.
//
// A Server serves one listener, which is bound to 127.0.0.1:9001 inside the instance's network
// namespace. The listener is the identity: nothing in a request says who is asking. The package
// knows nothing of containers, releases or callers; whoever owns the instance calls Invoke and
// gets the runtime's answer.
//
// # States
//
//	Started --next--> Ready --event handed out--> Running --response--> InvocationResponse -------\
//	   |                                           | ^ |  \--error----> InvocationErrorResponse --> RuntimeResponseSent --next--> Ready
//	   \--init/error--> InitError                  | \-/ next: the same event once more
//	                                               \--the invocation's context ends--> Abandoned
//
// An illegal move is answered 403 InvalidStateTransition with the names above. The request ID in a
// path is compared before the state is looked at: any other than the current one is 400
// InvalidRequestID. The ID stays current after the answer until the runtime is back in next, so a
// second answer is 403 and one for an older invocation 400. An instance in Abandoned, in InitError,
// after an invalid response-mode header or after Fail never gets an event again; its owner
// destroys it. There a further next is held without an answer (Abandoned, Fail) or refused.
//
// At most one next is parked. When a second one arrives, the newest stays and the older one is
// answered 403 (Ready to Ready): a runtime that lost its connection and asks again must not be
// turned away because the loss of the old connection has not been noticed yet.
//
// # Several invocations at once
//
// With Options.Concurrency N above 1 up to N next calls are parked, each on its own connection, and up to N
// invocations are in progress; an answer finds its own by the request ID (many.go). The runtime is Ready after the
// first next and stays so. Each invocation ends alone: a second answer is 400 InvalidRequestID, one that comes after
// Cancel is 410 Runtime.InvokeTimeout, and neither that nor a wrong response mode harms the others. A next beyond N is
// refused with Runtime.TooManyIdleRuntimes. Up to N bodies are held in memory.
//
// # Connections
//
// One goroutine per connection reads requests with a small HTTP/1.1 codec of our own. While its
// next is parked, the goroutine stays blocked in Read, which also notices a runtime that goes away;
// the goroutine that calls Start writes the event to the socket itself. The goroutine that has read an
// answer reports it to the invocation's Completion before the runtime gets its 202: the client comes first.
//
// What the codec does not plainly recognise (another path, Expect, Upgrade, HTTP/1.0, a query,
// a repeated Content-Length, a head above 64 KiB) is handed to net/http together with the
// bytes already read, and the connection stays there. net/http serves the same state machine, and
// Options.Fallback for every path that is not part of the Runtime or Extensions APIs. The
// fuzz targets hold the codec against net/http: what the codec accepts, net/http reads the same way.
//
// There is no timeout on a parked next or on an idle connection, which may wait for hours in a
// frozen instance. A head that has begun must be complete within ten seconds. The body of an answer
// is bounded by the context of its invocation, every other body by ten seconds. Only one body per
// instance is ever held in memory; bodies of refused requests are read and dropped.
//
// # Extensions, telemetry
//
// Registration of extensions answers 403 Extension.RegistrationClosed, the Telemetry and Logs APIs
// the legal 202 NotSupported forms, the SnapStart routes 404.
package rapi
