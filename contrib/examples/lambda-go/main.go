// Command bootstrap is the Go example: a Lambda function on the provided base image.
package main

import (
	"cmp"
	"context"
	"log"
	"os"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

type request struct {
	Name string `json:"name"`
}

type response struct {
	Message   string `json:"message"`
	Runtime   string `json:"runtime"`
	Greeting  string `json:"greeting"`
	RequestID string `json:"request_id"`
}

func handle(ctx context.Context, in request) (response, error) {
	name := cmp.Or(in.Name, "world")
	greeting := cmp.Or(os.Getenv("GREETING"), "Hello")
	log.Printf("greeting %s", name)
	out := response{Message: greeting + ", " + name + "!", Runtime: "go", Greeting: greeting}
	if lc, ok := lambdacontext.FromContext(ctx); ok {
		out.RequestID = lc.AwsRequestID
	}
	return out, nil
}

func main() {
	lambda.Start(handle)
}
