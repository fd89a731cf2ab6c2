// SPDX-License-Identifier: GPL-2.0-or-later
// One request over HTTP, and its answer.
#pragma once

#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "coordinator/protocol/asio.h"

namespace icp {

// Keeps itself alive while it reads or writes; made by std::make_shared. One thread.
template <typename Protocol>
class HttpExchange : public std::enable_shared_from_this<HttpExchange<Protocol>> {
 public:
  using Socket = boost::asio::basic_stream_socket<Protocol>;
  using Request = boost::beast::http::request<boost::beast::http::string_body>;

  explicit HttpExchange(Socket socket) : stream_(std::move(socket)) {}
  virtual ~HttpExchange() = default;
  HttpExchange(const HttpExchange&) = delete;
  HttpExchange& operator=(const HttpExchange&) = delete;

  void begin() {
    parser_.header_limit(kMostBytes);
    parser_.body_limit(kMostBytes);
    stream_.expires_after(kTimeout);
    boost::beast::http::async_read(stream_, buffer_, parser_,
                                   [self = this->shared_from_this()](boost::beast::error_code error, size_t) {
                                     self->stream_.expires_never();  // the answer may take its time
                                     if (!error) self->asked(self->parser_.get());
                                   });
  }

 protected:
  Socket& socket() { return stream_.socket(); }
  void answer(unsigned status, const char* type, std::string body) {
    stream_.expires_after(kTimeout);
    response_.result(status);
    response_.set(boost::beast::http::field::content_type, type);
    response_.body() = std::move(body);
    response_.keep_alive(false);
    response_.prepare_payload();
    boost::beast::http::async_write(stream_, response_,
                                    [self = this->shared_from_this()](boost::beast::error_code, size_t) {
                                      boost::beast::error_code ignored;
                                      self->stream_.socket().shutdown(Socket::shutdown_send, ignored);
                                    });
  }

 private:
  static constexpr std::chrono::seconds kTimeout{5};  // to read, and to write
  static constexpr uint64_t kMostBytes = 16 << 10;    // of a request

  // Answers once, now or later.
  virtual void asked(const Request& request) = 0;

  boost::beast::basic_stream<Protocol> stream_;
  boost::beast::flat_buffer buffer_;
  boost::beast::http::request_parser<boost::beast::http::string_body> parser_;
  boost::beast::http::response<boost::beast::http::string_body> response_;
};

}  // namespace icp
