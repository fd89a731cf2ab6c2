// SPDX-License-Identifier: GPL-2.0-or-later
// What the HTTP interface understands and answers: docs/openapi.yaml. Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "coordinator/protocol/coordinator.pb.h"

namespace icp {

// A request that is none: an HTTP status and a sentence.
struct RestError {
  unsigned status = 400;
  std::string text;
};

// `method`: "GET" or "POST"; `target`: path and query; `body`: a JSON object, or nothing. Throws RestError: 404 for a
// path that is none, 405 for the wrong method, 400 for the rest, naming the key.
net::Request parse_rest(std::string_view method, std::string_view target, std::string_view body);

// The HTTP status of an answer of icpctld.
unsigned rest_status(const net::Reply& reply);
// The JSON of an answer. Looks up names of users: may block.
std::string rest_body(const net::Request& request, const net::Reply& reply);
std::string rest_body(const RestError& error);

}  // namespace icp
